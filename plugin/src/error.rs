//! How failures become the error object of the CNI specification (section "Error", the same in all versions served).

use crate::version::SpecVersion;
use ipamd_api::{ApiError, ClientError, ErrorCode};
use serde::Serialize;
use std::fmt::Display;

/// A CNI_* variable is missing or wrong.
pub(crate) fn environment(msg: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidEnvironment, msg)
}

/// The input has another shape than it must have.
pub(crate) fn decode(msg: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Decode, msg)
}

/// The configuration has the right shape and a wrong content.
pub(crate) fn invalid(msg: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidNetwork, msg)
}

/// A value that is well-formed but not served. The specification wants key and value in the message.
pub(crate) fn unsupported(key: &str, value: impl Display, why: &str) -> ApiError {
    ApiError::new(ErrorCode::UnsupportedField, format!("netconf: {key:?} is {value}, but {why}"))
}

/// What a call to ipamd ended with, as every verb but STATUS says it.
pub(crate) fn of_client(error: ClientError) -> ApiError {
    match error {
        ClientError::Refused(error) => error,
        ClientError::Unavailable { .. } | ClientError::Broken { .. } => {
            ApiError::new(ErrorCode::TryAgainLater, error.to_string())
        }
        ClientError::Misunderstood { .. } => ApiError::new(ErrorCode::Io, error.to_string()),
    }
}

/// The same for STATUS: whatever keeps ipamd from answering keeps it from serving an ADD.
pub(crate) fn of_client_for_status(error: ClientError) -> ApiError {
    match error {
        ClientError::Refused(error) => error,
        other => ApiError::new(ErrorCode::NotAvailable, other.to_string()),
    }
}

/// The error object.
pub(crate) fn render(version: SpecVersion, error: &ApiError) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct ErrorObject<'a> {
        cni_version: &'a str,
        #[serde(flatten)]
        error: &'a ApiError,
    }
    to_json(&ErrorObject { cni_version: version.as_str(), error })
}

/// JSON as people like to read it in a runtime's log, and a newline.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Cannot fail: keys are strings and nothing here has a serializer of its own that fails.
    let mut out = serde_json::to_vec_pretty(value).unwrap_or_default();
    out.push(b'\n');
    out
}
