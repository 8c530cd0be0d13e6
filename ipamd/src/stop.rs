//! Stop points for fault tests: in a debug build, the process kills itself where `WEFT_STOP_AT` says.
//!
//! A release build has none of this.

/// Dies by SIGKILL when this is the stop point that the environment names; nothing in release builds.
#[cfg(debug_assertions)]
pub(crate) fn stop_point(name: &str) {
    static STOP_AT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let wanted = STOP_AT.get_or_init(|| std::env::var("WEFT_STOP_AT").ok());
    if wanted.as_deref() == Some(name) {
        // SIGKILL to oneself does not return; should the kernel refuse it, the test that asked for it fails.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Nothing in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn stop_point(_name: &str) {}
