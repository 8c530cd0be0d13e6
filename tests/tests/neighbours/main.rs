//! Weft beside others on one host: firewalls that are reloaded or closed, and Docker with rules of its own. Weft's traffic does
//! not need their rules, and their rules stay as they are.

mod docker;
mod firewall;
mod scene;
