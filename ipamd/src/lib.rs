//! ipamd, the node daemon of Weft: owns addresses, wiring and the datapath of one node.
//!
//! Decisions are pure (`ipam`, `dns` but for its server, `network`, `overlay`, `publish`, `uplinks`, `reconcile`, `trace`): they take a
//! snapshot and the time and return what to change. Edges are thin (`store`, `journal`, `kernel`, `datapath`, `dns::server`,
//! `server`). Only `attach` and `daemon` join them.

pub mod attach;
pub mod calls;
pub mod clock;
pub mod cluster;
pub mod conflist;
pub mod daemon;
pub mod datapath;
pub mod dns;
pub mod doctor;
pub mod drops;
mod durable;
mod error;
pub mod install;
pub mod ipam;
pub mod journal;
pub mod kernel;
pub mod member;
pub mod membership;
pub mod memory;
pub mod metrics;
pub mod network;
pub mod networks;
pub mod overlay;
pub mod path;
pub mod preflight;
pub mod publish;
mod random;
pub mod reconcile;
pub mod server;
pub mod settings;
mod stop;
pub mod store;
pub mod trace;
pub mod uplinks;
