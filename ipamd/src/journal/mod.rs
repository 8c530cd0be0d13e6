//! The journal of attachments: node state that survives any crash of ipamd, and no boot.

mod record;

pub use record::*;
