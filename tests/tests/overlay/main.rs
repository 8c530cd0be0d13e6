//! Overlay networks: one network on several machines, joined by VXLAN, with a real etcd beside them.

mod addresses;
mod broken_card;
mod connect;
mod direct;
mod flood;
mod host;
mod isolation;
mod packets;
mod paths;
mod published;
mod restart;
mod scene;
mod security;
mod shortcut;
mod sizes;
mod trace;
