//! Names: real resolvers in containers, answered by the programs and by ipamd. Needs root.

mod clients;
mod cluster;
mod dnssec;
mod engines;
mod forward;
mod inside;
mod life;
mod networks;
mod scene;
mod seen;
mod ways;
