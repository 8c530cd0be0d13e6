//! One table, both families.

/// Makes a test for each family, which runs all of these functions on one host that is cleaned in between: making a host loads
/// every program, and an emulated kernel takes a minute for that.
macro_rules! families {
    ($($name:ident),+ $(,)?) => {
        #[test]
        fn over_ipv4() {
            crate::families::run(&crate::host::V4, &[$((stringify!($name), $name)),+]);
        }

        #[test]
        fn over_ipv6() {
            crate::families::run(&crate::host::V6, &[$((stringify!($name), $name)),+]);
        }
    };
}

use crate::host::{Family, Host};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Its name, and what it does with a clean host.
type Table<'a> = (&'a str, fn(&Host, &Family));

/// Runs tables one after the other, before it says which ones failed.
pub(crate) fn run(f: &Family, tables: &[Table<'_>]) {
    let host = Host::new();
    let fails = |(name, table): &&Table<'_>| {
        println!("{name}");
        host.clean();
        catch_unwind(AssertUnwindSafe(|| table(&host, f))).is_err()
    };
    let failed: Vec<&str> = tables.iter().filter(fails).map(|(name, _)| *name).collect();
    assert!(failed.is_empty(), "{} of {} tables failed: {failed:?}", failed.len(), tables.len());
}
