//! Why a network is not what was asked for.

use ipamd_api::{ApiError, ErrorCode};
use ipnetwork::IpNetwork;
use std::fmt;

/// A field in which a spec contradicts the stored network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDifference {
    /// The field, e.g. `mtu` or `gateway of pool 10.0.0.0/24`.
    pub field: String,
    /// What is stored.
    pub stored: String,
    /// What is asked for.
    pub asked: String,
}

impl fmt::Display for FieldDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, asked for {}", self.field, self.stored, self.asked)
    }
}

/// Why there is no such network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// A field is wrong.
    #[error("network {name:?}: {why}")]
    Invalid {
        /// Name of the network.
        name: String,
        /// The field, its value, and what to write instead.
        why: String,
    },
    /// The stored network is another one.
    #[error(
        "network {name:?} exists and differs: {}; make both agree, choose another name, or remove it with `netctl network rm {name}`",
        listed(.differences)
    )]
    Conflict {
        /// Name of the network.
        name: String,
        /// Every field that differs.
        differences: Vec<FieldDifference>,
    },
    /// The pool is in use.
    #[error(
        "network {name:?}: pool {subnet} overlaps pool {theirs} of network {other:?}; choose another subnet"
    )]
    Overlap {
        /// Name of the network.
        name: String,
        /// The pool asked for.
        subnet: IpNetwork,
        /// The network that has it.
        other: String,
        /// Its pool.
        theirs: IpNetwork,
    },
    /// The VXLAN network identifier is in use.
    #[error("network {name:?}: VNI {vni} is network {other:?}'s; choose another one, or leave it out")]
    VniTaken {
        /// Name of the network.
        name: String,
        /// The VNI asked for.
        vni: u32,
        /// The network that has it.
        other: String,
    },
    /// Every default pool is in use.
    #[error(
        "network {name:?} has no subnet, and every default pool of {bases} overlaps another network or a route of this host; set a subnet"
    )]
    NoDefaultPool {
        /// Name of the network.
        name: String,
        /// Where default pools come from.
        bases: String,
    },
}

impl From<&NetworkError> for ApiError {
    fn from(error: &NetworkError) -> Self {
        let code = match error {
            NetworkError::Conflict { .. } => ErrorCode::NetworkConflict,
            _ => ErrorCode::InvalidNetwork,
        };
        Self::new(code, error.to_string())
    }
}

fn listed(differences: &[FieldDifference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
