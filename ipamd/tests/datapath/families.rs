//! One table, both families.

/// Makes a test for each family of functions that take one.
macro_rules! families {
    ($($(#[$attribute:meta])* $name:ident),+ $(,)?) => {
        mod ipv4 {
            $($(#[$attribute])* #[test] fn $name() { super::$name(&crate::host::V4); })+
        }
        mod ipv6 {
            $($(#[$attribute])* #[test] fn $name() { super::$name(&crate::host::V6); })+
        }
    };
}
