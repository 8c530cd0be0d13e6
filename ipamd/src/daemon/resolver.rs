//! The resolver as the API shows it.

use super::NodeState;
use crate::dns::{
    Answered, DomainName, Transport,
    wire::{CLASS_IN, Question, kind::PTR, status},
};
use hickory_proto::rr::RecordType;
use ipamd_api::{
    ApiError, AttachmentKey, DnsAnswerView, DnsQueryRequest, DnsQuestionView, DnsRecordView, DnsStats,
    DnsUpstream, ErrorCode, ProgramCounts,
};
use std::{
    net::IpAddr,
    time::{Instant, UNIX_EPOCH},
};

impl NodeState {
    /// What programs and resolver answered.
    ///
    /// # Errors
    /// The datapath refuses.
    pub fn dns_stats(&self) -> Result<DnsStats, ApiError> {
        let counts = self.attachments.datapath().dns_counts()?;
        let programs = ProgramCounts {
            a: counts.a,
            aaaa: counts.aaaa,
            pointer: counts.pointer,
            no_data: counts.no_data,
            missed: counts.missed,
            not_understood: counts.not_understood,
        };
        let upstreams = self.dns.upstreams().into_iter().map(DnsUpstream).collect();
        Ok(DnsStats { programs, resolver: self.dns.stats(), upstreams })
    }

    /// What a container would be told.
    ///
    /// # Errors
    /// There is no such container, what is asked is no question, or the resolver ends.
    pub fn dns_query(&self, request: &DnsQueryRequest) -> Result<DnsAnswerView, ApiError> {
        let endpoint = self.attachments.endpoint_on(&request.container, request.network.as_deref())?;
        let refuse = |msg: String| ApiError::new(ErrorCode::NameUnusable, msg);
        let asked = kind(&request.kind).ok_or_else(|| {
            refuse(format!("{:?} is no type of record: write one as A, AAAA, SRV or TYPE65", request.kind))
        })?;
        let (name, kind) = match request.name.parse::<IpAddr>() {
            Ok(address) => (DomainName::of_address(address), PTR),
            Err(_) => (request.name.parse::<DomainName>().map_err(|e| refuse(e.to_string()))?, asked),
        };
        let begun = Instant::now();
        let answer = self.dns.ask(endpoint, &Question { name, kind, class: CLASS_IN });
        let answer = answer.map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let record = |record: &hickory_proto::rr::Record| DnsRecordView {
            name: record.name.to_string(),
            ttl: record.ttl,
            kind: shown(record.record_type().into()),
            data: record.data.to_string(),
        };
        let records = answer.answers.iter().map(record).collect();
        Ok(DnsAnswerView { status: status(answer.metadata.response_code.into()), took_us, records })
    }
}

/// A question as it was answered.
pub fn question_view(answered: &Answered, attachment: Option<AttachmentKey>) -> DnsQuestionView {
    let since = answered.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    DnsQuestionView {
        time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        attachment,
        source: answered.source,
        transport: match answered.transport {
            Transport::Udp => "udp".to_owned(),
            Transport::Tcp => "tcp".to_owned(),
        },
        name: answered.name.clone(),
        kind: shown(answered.kind),
        status: status(answered.rcode),
        answered_by: answered.origin.to_string(),
        took_us: u64::try_from(answered.took.as_micros()).unwrap_or(u64::MAX),
    }
}

/// The number of a type of record: by its name, or as `TYPE65` (RFC 3597, section 5).
fn kind(text: &str) -> Option<u16> {
    let upper = text.to_ascii_uppercase();
    match upper.strip_prefix("TYPE") {
        Some(number) => number.parse().ok(),
        None => upper.parse::<RecordType>().ok().map(u16::from),
    }
}

/// The other way.
fn shown(kind: u16) -> String {
    match RecordType::from(kind) {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        known => known.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_names_and_numbers() {
        for (text, number, name) in [
            ("a", 1, "A"),
            ("AAAA", 28, "AAAA"),
            ("type1", 1, "A"),
            ("TYPE4711", 4711, "TYPE4711"),
            ("srv", 33, "SRV"),
        ] {
            assert_eq!(kind(text), Some(number), "{text}");
            assert_eq!(shown(number), name);
        }
        for text in ["", "B", "TYPE", "TYPE70000"] {
            assert_eq!(kind(text), None, "{text}");
        }
    }
}
