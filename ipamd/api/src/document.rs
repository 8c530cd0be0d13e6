//! Documents: what an operator declares in files, and what became of it.
//!
//! A document is `apiVersion`, `kind`, `metadata` and `spec`. Its `spec` is the request of the same thing without the field that names
//! it, which `metadata.name` is, so that files and calls have one definition of every field. The JSON schema (feature `schema`) comes
//! of the same types as the reading.

#[cfg(feature = "schema")]
mod schema;

#[cfg(feature = "schema")]
pub use schema::document_schema;

use crate::{AddNameRequest, ApiError, NetworkSpec, PublishRequest};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{collections::BTreeSet, fmt, net::IpAddr};

/// The `apiVersion` of documents.
pub const DOCUMENT_VERSION: &str = "weft/v1";

/// What a document declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum DocumentKind {
    /// A network of the cluster: [`NetworkSpec`].
    Network,
    /// Addresses that are kept for a name: [`StaticAddressSpec`].
    StaticAddress,
    /// A name that an operator gives: [`AddNameRequest`].
    DnsRecord,
    /// All that operators publish of a container of this node: [`PublishRequest`].
    Publish,
}

impl DocumentKind {
    /// All of them, what others depend on first: the order in which they are applied.
    pub const ALL: [Self; 4] = [Self::Network, Self::StaticAddress, Self::DnsRecord, Self::Publish];

    /// As documents write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "Network",
            Self::StaticAddress => "StaticAddress",
            Self::DnsRecord => "DnsRecord",
            Self::Publish => "Publish",
        }
    }

    /// What a document of the kind says.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Network => {
                "A network of the cluster. What is not said takes a default; nothing can be changed later."
            }
            Self::StaticAddress => {
                "Addresses of a network for the container of this name, which gets them without asking; nobody else gets them."
            }
            Self::DnsRecord => "A name of a network: for addresses, or for another name of the network.",
            Self::Publish => {
                "All ports that operators publish of a container of the node, beside those that its runtime asked for."
            }
        }
    }

    /// The field of the request that `metadata.name` stands for.
    pub const fn named_by(self) -> &'static str {
        match self {
            Self::Network | Self::StaticAddress | Self::DnsRecord => "name",
            Self::Publish => "container",
        }
    }
}

impl fmt::Display for DocumentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a document is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DocumentMetadata {
    /// Name of the network, of the container whose addresses are kept, the DNS name, or the container that publishes (ID, a unique
    /// start of it, or name of the pod).
    pub name: String,
}

/// A document as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    /// Version of the form.
    api_version: String,
    /// What is declared.
    kind: DocumentKind,
    /// What it is about.
    metadata: DocumentMetadata,
    /// How it is to be.
    spec: Map<String, Value>,
}

/// Addresses of a network that only the endpoint of a name gets, which gets them without asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticAddressSpec {
    /// Name of the network.
    pub network: String,
    /// Name or alias of the container.
    pub name: String,
    /// One address, or one of each family.
    pub addresses: Vec<IpAddr>,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// Of kind [`DocumentKind::Network`].
    Network(NetworkSpec),
    /// Of kind [`DocumentKind::StaticAddress`].
    StaticAddress(StaticAddressSpec),
    /// Of kind [`DocumentKind::DnsRecord`].
    DnsRecord(AddNameRequest),
    /// Of kind [`DocumentKind::Publish`].
    Publish(PublishRequest),
}

impl Declared {
    /// Its kind.
    pub fn kind(&self) -> DocumentKind {
        match self {
            Self::Network(_) => DocumentKind::Network,
            Self::StaticAddress(_) => DocumentKind::StaticAddress,
            Self::DnsRecord(_) => DocumentKind::DnsRecord,
            Self::Publish(_) => DocumentKind::Publish,
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        match self {
            Self::Network(spec) => &spec.name,
            Self::StaticAddress(spec) => &spec.name,
            Self::DnsRecord(spec) => &spec.name,
            Self::Publish(spec) => &spec.container,
        }
    }

    /// The network that it belongs to, if it says one.
    pub fn network(&self) -> Option<&str> {
        match self {
            Self::Network(_) => None,
            Self::StaticAddress(spec) => Some(&spec.network),
            Self::DnsRecord(spec) => Some(&spec.network),
            Self::Publish(spec) => spec.network.as_deref(),
        }
    }
}

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct DocumentError {
    /// The field, e.g. `spec.pools[0].subnet`.
    pub field: String,
    /// What is wrong with it, and what to write.
    pub why: String,
}

impl DocumentError {
    fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

impl Declared {
    /// Reads a document.
    ///
    /// # Errors
    /// It is none of this version, or a field is unknown, missing or wrong.
    pub fn read(document: &Value) -> Result<Self, DocumentError> {
        let Value::Object(fields) = document else {
            return Err(DocumentError::new(
                "document",
                "it is no mapping with apiVersion, kind, metadata and spec",
            ));
        };
        // First of all: of another version nothing else can be judged.
        match fields.get("apiVersion").map(|version| version.as_str().unwrap_or_default()) {
            Some(DOCUMENT_VERSION) => {}
            Some(other) => {
                let why = format!("{other:?} is not known here; write {DOCUMENT_VERSION}");
                return Err(DocumentError::new("apiVersion", why));
            }
            None => {
                return Err(DocumentError::new(
                    "apiVersion",
                    format!("it is missing; write {DOCUMENT_VERSION}"),
                ));
            }
        }
        let Written { kind, metadata, mut spec, .. } = typed("", document.clone())?;
        let named_by = kind.named_by();
        if spec.contains_key(named_by) {
            let why = "it is said by metadata.name; remove it here";
            return Err(DocumentError::new(format!("spec.{named_by}"), why));
        }
        spec.insert(named_by.to_owned(), Value::String(metadata.name));
        let spec = Value::Object(spec);
        Ok(match kind {
            DocumentKind::Network => Self::Network(typed("spec", spec)?),
            DocumentKind::StaticAddress => Self::StaticAddress(typed("spec", spec)?),
            DocumentKind::DnsRecord => Self::DnsRecord(typed("spec", spec)?),
            DocumentKind::Publish => Self::Publish(typed("spec", spec)?),
        })
    }
}

/// Reads a value, and says at which field below `at` it went wrong.
fn typed<T: DeserializeOwned>(at: &str, value: Value) -> Result<T, DocumentError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = match (at, path.as_str()) {
            ("", ".") => "document".to_owned(),
            (at, ".") => at.to_owned(),
            ("", path) => path.to_owned(),
            (at, path) => format!("{at}.{path}"),
        };
        DocumentError::new(field, error.into_inner().to_string())
    })
}

/// Body of POST `apply`: makes what documents declare so, or with `remove` no longer so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApplyRequest {
    /// The documents. All of them are checked before anything is changed.
    pub documents: Vec<Value>,
    /// Remove what they name.
    #[serde(default)]
    pub remove: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What became of a document, or would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DocumentAction {
    /// It was not there.
    Created,
    /// It was there, and another way.
    Changed,
    /// It was there as declared; when removing, it was not there.
    Unchanged,
    /// It was there and is no more.
    Deleted,
    /// It could not be done; what comes after it was tried all the same.
    Failed,
}

/// A field that is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldChange {
    /// The field of `spec`.
    pub field: String,
    /// What it was, if it was anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What it is now, if it is anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// What became of one document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentOutcome {
    /// Its place in the request, from 1.
    pub document: usize,
    /// Its kind.
    pub kind: DocumentKind,
    /// `metadata.name`.
    pub name: String,
    /// The network that it belongs to, if it says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What was done.
    pub action: DocumentAction,
    /// What is different by that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
    /// Why it could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// Answer to [`ApplyRequest`]: an outcome of each document, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplyReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The outcomes.
    pub outcomes: Vec<DocumentOutcome>,
}

impl ApplyReport {
    /// Which actions are among the outcomes.
    pub fn actions(&self) -> BTreeSet<DocumentAction> {
        self.outcomes.iter().map(|outcome| outcome.action).collect()
    }
}

#[cfg(test)]
mod tests;
