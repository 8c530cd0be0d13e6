//! Stop points: places where a fault test ends this process as if it had been killed there.
//!
//! Debug builds only. The names are part of the tests' contract: `plugin.<verb>.<what has just happened>`.

/// Ends the process by SIGKILL if `WEFT_STOP_AT` names this point. Nothing in release builds.
macro_rules! stop_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::stop::at($name);
    };
}

pub(crate) use stop_point;

#[cfg(debug_assertions)]
pub(crate) fn at(name: &str) {
    if std::env::var_os("WEFT_STOP_AT").is_some_and(|wanted| wanted == name) {
        // Should the signal fail, going on makes the test fail, which is what it is for.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}
