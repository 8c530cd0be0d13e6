//! ipamd, the node daemon of Weft: owns addresses, wiring and the datapath of one node.
//!
//! Decisions are pure (`ipam`, `network`, `reconcile`): they take a snapshot and the time and return what to change. Edges are
//! thin (`store`, `journal`, `kernel`, `datapath`, `server`). Only `attach` and `daemon` join them.

pub mod datapath;
pub mod journal;
pub mod kernel;
pub mod reconcile;
