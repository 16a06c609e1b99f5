//! Allocates without end in the callback that its configuration names.

selvedge_test_guests::saboteur!(|| {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    loop {
        hoard.push(std::hint::black_box(vec![1; 1 << 20]));
    }
});
