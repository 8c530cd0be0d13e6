//! Connections with other machines through the life of ipamd: whatever happens to it, none is lost.

mod restarts;
