//! Calls the host without end in the callback that its configuration names.

selvedge_test_guests::saboteur!(|| loop {
    let _ = proxy_wasm::hostcalls::get_current_time();
});
