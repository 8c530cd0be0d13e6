//! Connections with other machines and their flows: through the life of ipamd, through floods, and as operators see them.
//!
//! The part of the testkit that makes other machines is tested here too: what it promises is so before anyone relies on it.

mod doctor;
mod drops;
mod flood;
mod flows;
mod kit;
mod restarts;
mod scene;
mod talk;
mod trace;
mod uninstall;
