//! The end of Weft on this node: everything that it made in the kernel is taken back, endpoints that live among it.
//!
//! From its beginning no call that changes something is let in any more, and ipamd ends after it.

use super::{Attachments, plan};
use crate::journal;
use ipamd_api::{ApiError, ErrorCode, Phase, Uninstalled};
use std::sync::{PoisonError, atomic::Ordering};

impl Attachments {
    /// Removes endpoints, bridges, programs, maps, the journal, and puts settings of the host back. What fails is reported as left.
    ///
    /// # Errors
    /// There are endpoints and it is not forced; nothing was changed then.
    pub fn uninstall(&self, force: bool) -> Result<Uninstalled, ApiError> {
        let living = self.snapshot(|r| matches!(r.phase, Phase::Adding | Phase::Live));
        if let Some(first) = living.first().filter(|_| !force) {
            let msg = format!(
                "{} on this node, {} among them; remove their containers first, or force it: they lose their network",
                counted(living.len(), "living endpoint"),
                first.attachment
            );
            return Err(ApiError::new(ErrorCode::NetworkInUse, msg));
        }
        self.closing.store(true, Ordering::SeqCst);
        // A sweep that is under way would mend what is taken away here.
        let _sweeping = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = Uninstalled::default();
        self.remove_endpoints(&mut done);
        self.remove_devices(&mut done);
        {
            // Whoever follows the host would attach again.
            let _host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
            match self.datapath.uninstall() {
                Ok(lines) => done.removed.extend(without_pins(lines)),
                Err(error) => done.left.push(error.to_string()),
            }
        }
        match self.kernel.undo_settings() {
            Ok(()) => done.removed.push("changed settings of the host's devices".to_owned()),
            Err(error) => done.left.push(error.to_string()),
        }
        match journal::remove_all(&self.options.run_dir) {
            Ok(()) => done.removed.push("the journal and the release records".to_owned()),
            Err(error) => done.left.push(error.to_string()),
        }
        Ok(done)
    }

    fn remove_endpoints(&self, done: &mut Uninstalled) {
        let mut doomed = self.snapshot(|r| r.phase != Phase::Freed);
        let count = doomed.len();
        for record in &mut doomed {
            record.phase = Phase::Deleting;
            self.withdraw(record);
            self.forget(record);
            self.remember(record);
        }
        self.finish_removals(doomed);
        let left = self.len();
        if count > left {
            done.removed.push(counted(count - left, "endpoint"));
        }
        for record in self.snapshot(|_| true) {
            let name = record.endpoint.host_ifname();
            done.left.push(format!("the links of {} ({name}); see ipamd's log", record.attachment));
        }
    }

    fn remove_devices(&self, done: &mut Uninstalled) {
        let networks = self.networks.all();
        let mut count = 0;
        for network in networks.iter().filter(|n| n.driver == ipamd_api::Driver::Bridge) {
            let wiring = plan::network_wiring(network);
            let there = self.kernel.bridge_ifindex(&wiring.bridge).is_some();
            match self.kernel.remove_network(&wiring) {
                Ok(()) => count += usize::from(there),
                Err(error) => done.left.push(error.to_string()),
            }
        }
        if count > 0 {
            done.removed.push(counted(count, "bridge"));
        }
        match self.kernel.remove_overlay() {
            Ok(true) => done.removed.push("the VXLAN device and its routes".to_owned()),
            Ok(false) => {}
            Err(error) => done.left.push(error.to_string()),
        }
    }
}

/// What the datapath removed, its many pins as one line.
fn without_pins(lines: Vec<String>) -> Vec<String> {
    let (pins, mut rest): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.starts_with('/'));
    if !pins.is_empty() {
        rest.push(counted(pins.len(), "pin"));
    }
    rest
}

fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}
