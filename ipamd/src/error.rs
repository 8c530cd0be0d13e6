//! The one place where errors of the parts become the error that users read: code, sentence, details.

use crate::{
    cluster::ClusterError, datapath::DatapathError, journal::JournalError, kernel::KernelError,
    network::NetworkError,
};
use ipamd_api::{ApiError, ErrorCode, netns::NetnsError};

impl From<KernelError> for ApiError {
    fn from(error: KernelError) -> Self {
        let code = match &error {
            KernelError::InterfaceExists { .. } => ErrorCode::InterfaceExists,
            KernelError::ParentNotFound(_) => ErrorCode::ParentNotFound,
            KernelError::Netns(NetnsError::Io(_)) => ErrorCode::Io,
            KernelError::Netns(_) => ErrorCode::InvalidSandbox,
            KernelError::BridgeMissing(_) | KernelError::Refused { .. } => ErrorCode::Wiring,
        };
        // The kernel's words do not say what to do; the code does.
        Self::new(code, error.to_string()).with_details(code.remedy())
    }
}

impl From<DatapathError> for ApiError {
    fn from(error: DatapathError) -> Self {
        Self::new(ErrorCode::Datapath, error.to_string())
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        Self::new(ErrorCode::Journal, error.to_string())
    }
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> Self {
        Self::from(&error)
    }
}

impl From<NetworkError> for ApiError {
    fn from(error: NetworkError) -> Self {
        let code = match &error {
            NetworkError::Conflict { .. } => ErrorCode::NetworkConflict,
            _ => ErrorCode::InvalidNetwork,
        };
        Self::new(code, error.to_string())
    }
}
