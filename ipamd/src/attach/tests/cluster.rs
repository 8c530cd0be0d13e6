//! Two nodes of one cluster, by example.
