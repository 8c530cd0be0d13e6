//! CNI CHECK: is everything still as ADD made it?

use super::{Attachments, plan, sweep::shaping_of};
use crate::{journal::Record, kernel::SandboxObserved, reconcile};
use ipamd_api::{ApiError, CheckRequest, Difference, Driver, ErrorCode, Phase};
use ipnetwork::IpNetwork;

impl Attachments {
    /// Compares the attachment with the kernel and the datapath.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownContainer`] when there is no such attachment; [`ErrorCode::CheckFailed`] with every difference.
    pub fn check(&self, request: &CheckRequest) -> Result<(), ApiError> {
        let _pass = self.enter(&request.attachment)?;
        let key = &request.attachment;
        let unknown = |msg: String| ApiError::new(ErrorCode::UnknownContainer, msg);
        let record = self
            .find(key)
            .filter(|r| r.phase == Phase::Live && r.network.name == request.network)
            .ok_or_else(|| {
            unknown(format!("no attachment {key} on network {} is known here", request.network))
        })?;
        let sandbox = self.kernel.open_sandbox(&request.netns)?;
        if sandbox.identity.cookie != record.sandbox.cookie {
            return Err(unknown(format!(
                "attachment {key} belongs to another network namespace than {}: the sandbox was replaced; send DEL, then ADD",
                request.netns.display()
            )));
        }
        let missing: Vec<_> = request.expected_ips.iter().filter(|ip| is_missing(&record, **ip)).collect();
        if !missing.is_empty() {
            let msg = format!(
                "prevResult has {missing:?} for attachment {key}, which holds {:?}",
                plan::addresses(&record)
            );
            return Err(ApiError::new(ErrorCode::CheckFailed, msg));
        }
        self.verify(&record)
    }

    /// Fails with every difference between the record and what is there.
    pub(super) fn verify(&self, record: &Record) -> Result<(), ApiError> {
        let differences = self.differences(record)?;
        if differences.is_empty() {
            return Ok(());
        }
        let (what, details): (Vec<_>, Vec<_>) =
            differences.into_iter().map(|d| (describe(&d), d.remedy)).unzip();
        let msg = format!("attachment {} differs from what ADD made: {}", record.attachment, what.join("; "));
        Err(ApiError::new(ErrorCode::CheckFailed, msg)
            .with_details(format!("mend it by: {}", details.join("; "))))
    }

    /// What differs at the live endpoints, each with its attachment; and why some cannot be looked at.
    pub fn endpoint_differences(&self) -> (Vec<(String, Difference)>, Vec<String>) {
        let (mut found, mut unseen) = (Vec::new(), Vec::new());
        for record in self.snapshot(|r| r.phase == Phase::Live) {
            let differences = self.differences(&record);
            // One that has been removed meanwhile differs in everything.
            if self.find(&record.attachment).is_none_or(|now| now.endpoint != record.endpoint) {
                continue;
            }
            match differences {
                Ok(all) => found.extend(all.into_iter().map(|d| (record.attachment.to_string(), d))),
                Err(error) => unseen.push(format!("{}: {}", record.attachment, error.msg)),
            }
        }
        (found, unseen)
    }

    /// Every difference between a live record and what kernel and datapath have.
    pub(super) fn differences(&self, record: &Record) -> Result<Vec<Difference>, ApiError> {
        let wiring = plan::endpoint_wiring(record);
        let observed = self.kernel.observe(&wiring, &record.sandbox)?;
        if observed.sandbox != SandboxObserved::Same {
            return Ok(vec![Difference {
                subject: format!("sandbox {}", record.sandbox.path.display()),
                desired: format!("network namespace with cookie {}", record.sandbox.cookie),
                observed: path_word(observed.sandbox).to_owned(),
                remedy: format!("the runtime has to send DEL for {}; or `netctl gc`", record.attachment),
            }]);
        }
        let mut differences = reconcile::endpoint_differences(&wiring, &record.sandbox.path, &observed);
        if let Some(entry) = plan::endpoint_entry(record, shaping_of(&self.kernel.shaping()?, record)) {
            differences.extend(self.datapath_differences(&entry)?);
        }
        differences.extend(self.port_differences(record)?);
        Ok(differences)
    }

    fn datapath_differences(
        &self,
        entry: &crate::datapath::EndpointEntry,
    ) -> Result<Vec<Difference>, ApiError> {
        let attached = self.datapath.attached(entry)?;
        let held = self.datapath.observe_endpoint(&entry.into())?;
        let mut differences = Vec::new();
        let mut differ = |subject: String, desired: String, observed: String| {
            differences.push(Difference { subject, desired, observed, remedy: "netctl gc".to_owned() });
        };
        for (program, there) in [("from_pod", attached.from_pod), ("to_pod", attached.to_pod)] {
            if !there {
                let subject = format!("program {program} on {}", entry.host_ifname);
                differ(subject, "attached".into(), "not attached".into());
            }
        }
        for row in crate::datapath::rows(entry, &held) {
            if row.desired != row.observed {
                differ(format!("map {}", row.subject), row.desired, row.observed);
            }
        }
        Ok(differences)
    }
}

/// Whether an address of prevResult should be the record's and is not. Where others wire the endpoint, they may give it more
/// addresses than these, and another prefix length.
fn is_missing(record: &Record, ip: IpNetwork) -> bool {
    if record.network.driver == Driver::External {
        return record.addresses.iter().any(|a| a.address.contains(ip.ip()))
            && record.addresses.iter().all(|a| a.address.ip() != ip.ip());
    }
    record.addresses.iter().all(|a| a.address != ip)
}

fn describe(d: &Difference) -> String {
    format!("{} is {} instead of {}", d.subject, d.observed, d.desired)
}

/// What a look at the path says, in words.
fn path_word(path: SandboxObserved) -> &'static str {
    match path {
        SandboxObserved::Same => "there",
        SandboxObserved::Replaced => "another namespace",
        SandboxObserved::Gone => "gone",
    }
}
