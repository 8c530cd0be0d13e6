//! Fault tests: the real daemon, plugin and kernel, killed, starved and restarted. Nothing may be lost, given twice or left.
//!
//! Need root. `WEFT_SOAK_SECONDS` makes the soak longer than its 25 s; before a release it is run for minutes.

mod away;
mod backup;
mod kill;
mod life;
mod rebuild;
mod run_dir;
mod scene;
mod soak;
mod traffic;
mod upgrade;
