//! Documents of operators: read, checked against what is there, and made so, or no longer so.
//!
//! Invariants: every document is checked before anything is changed, those that others depend on as if they were applied already; a
//! refusal names each document with its field and the way out; applied again, nothing is changed. What is refused only while it is
//! done (by the store, by another caller who was faster) ends as [`DocumentAction::Failed`], and the others are done all the same.

mod plan;
mod publish;

use super::Attachments;
use crate::{cluster::StaticName, dns::DomainName};
use ipamd_api::{
    ApiError, ApplyReport, ApplyRequest, Declared, DocumentAction, DocumentOutcome, ErrorCode, NetworkSpec,
    PortMapping, PublishRequest, UnpublishRequest,
};
use plan::Planner;
use serde_json::Value;
use std::net::IpAddr;

/// How a document is made so.
#[derive(Debug)]
enum Step {
    Nothing,
    CreateNetwork(NetworkSpec),
    RemoveNetwork(String),
    /// No address: the name has none any more.
    KeepAddresses(String, String, Vec<IpAddr>),
    GiveName(String, DomainName, StaticName),
    TakeName(String, DomainName),
    Publish {
        container: String,
        network: String,
        removed: Vec<PortMapping>,
        added: Vec<PortMapping>,
    },
}

/// A document that was checked, with what would become of it.
#[derive(Debug)]
struct Planned {
    outcome: DocumentOutcome,
    step: Step,
}

/// Documents that are refused, in words.
#[derive(Debug, Default)]
struct Refusals(Vec<(usize, String)>);

impl Refusals {
    fn note(&mut self, document: usize, about: &str, why: impl std::fmt::Display) {
        self.0.push((document, format!("document {document}{about}: {why}")));
    }

    /// Nothing, or all of them as one error.
    fn unless_none(mut self, documents: usize) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort();
        let lines: Vec<String> = self.0.into_iter().map(|(_, line)| line).collect();
        let msg = format!("{} of {documents} documents are refused, and nothing was changed", lines.len());
        Err(ApiError::new(ErrorCode::InvalidDocument, msg).with_details(lines.join("\n")))
    }
}

/// A document in words: ` (Network "blue")`.
fn about(kind: &str, name: &str) -> String {
    format!(" ({kind} {:?})", name.chars().take(64).collect::<String>())
}

/// The same of one that could not be read, as far as it says.
fn about_written(document: &Value) -> String {
    let text = |value: &Value| value.as_str().map(|text| text.chars().take(64).collect::<String>());
    match (text(&document["kind"]), text(&document["metadata"]["name"])) {
        (Some(kind), Some(name)) => about(&kind, &name),
        (Some(kind), None) => format!(" ({kind})"),
        (None, _) => String::new(),
    }
}

impl Attachments {
    /// Makes what documents declare so, or what they name go; says what became of each.
    ///
    /// # Errors
    /// A document cannot be read, or cannot become so: all such are named, and nothing was changed.
    pub fn apply_documents(&self, request: &ApplyRequest) -> Result<ApplyReport, ApiError> {
        let mut refusals = Refusals::default();
        let mut declared = Vec::new();
        for (document, written) in (1..).zip(&request.documents) {
            match Declared::read(written) {
                Ok(read) => declared.push((document, read)),
                Err(error) => refusals.note(document, &about_written(written), error),
            }
        }
        // What others depend on comes first, and goes last.
        declared.sort_by_key(|(document, declared)| (declared.kind(), *document));
        if request.remove {
            declared.reverse();
        }
        let mut planner = Planner::new(self, request.remove, &declared);
        let mut planned = Vec::new();
        for (document, declared) in &declared {
            match planner.plan(*document, declared) {
                Ok(plan) => planned.push(plan),
                Err(error) => {
                    refusals.note(*document, &about(declared.kind().name(), declared.name()), error);
                }
            }
        }
        refusals.unless_none(request.documents.len())?;
        let mut outcomes = Vec::new();
        for Planned { mut outcome, step } in planned {
            if !request.dry_run
                && let Err(error) = self.take(step)
            {
                outcome.action = DocumentAction::Failed;
                outcome.error = Some(error);
            }
            outcomes.push(outcome);
        }
        outcomes.sort_by_key(|outcome| outcome.document);
        Ok(ApplyReport { dry_run: request.dry_run, outcomes })
    }

    fn take(&self, step: Step) -> Result<(), ApiError> {
        match step {
            Step::Nothing => Ok(()),
            Step::CreateNetwork(spec) => self.create_network(&spec).map(drop),
            Step::RemoveNetwork(name) => self.remove_network(&name),
            Step::KeepAddresses(network, name, addresses) => {
                let network = self.networks.keep_addresses(&network, &name, &addresses)?;
                self.introduce(&network, false)
            }
            Step::GiveName(network, name, is) => {
                let network = self.networks.get(&network)?;
                self.set_name(&network, &name, &is)
            }
            Step::TakeName(network, name) => {
                self.remove_name(&ipamd_api::RemoveNameRequest { network, name: name.to_string() })
            }
            Step::Publish { container, network, removed, added } => {
                for mapping in &removed {
                    self.unpublish(&UnpublishRequest {
                        container: container.clone(),
                        host_port: mapping.host_port,
                        protocol: mapping.protocol,
                        host_ip: mapping.host_ip,
                    })?;
                }
                let ask = |mappings: Vec<PortMapping>| {
                    let network = Some(network.clone());
                    self.publish(&PublishRequest { container: container.clone(), network, mappings })
                };
                if added.is_empty() {
                    return Ok(());
                }
                let Err(error) = ask(added) else { return Ok(()) };
                // Somebody was faster: what was published before is so again.
                if !removed.is_empty()
                    && let Err(error) = ask(removed)
                {
                    tracing::error!(container, %error, "ports of a failed change are not published any more");
                }
                Err(error)
            }
        }
    }
}
