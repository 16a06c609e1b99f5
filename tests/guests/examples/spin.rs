//! Never returns from the callback that its configuration names.

selvedge_test_guests::saboteur!(|| {
    loop {
        std::hint::spin_loop();
    }
});
