//! Connections with other machines through the life of ipamd: whatever happens to it, none is lost. And the
//! part of the testkit that makes other machines: what it promises is so before anyone relies on it.

mod kit;
mod restarts;
