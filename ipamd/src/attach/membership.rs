//! What this node holds, as its membership in the cluster needs it.

use super::Attachments;
use crate::{
    ipam::block_containing,
    member::{Comparison, Holder, Stray},
};
use ipamd_api::{ApiError, Phase};
use ipnetwork::IpNetwork;
use std::collections::BTreeSet;

impl Holder for Attachments {
    fn incarnation(&self) -> Option<u64> {
        self.networks.member().incarnation
    }

    fn is_draining(&self) -> bool {
        self.networks.member().draining
    }

    fn remember(&self, incarnation: u64, draining: bool) -> Result<(), ApiError> {
        self.networks.set_registered(incarnation, draining)
    }

    fn fence(&self) -> Result<(), ApiError> {
        Self::fence(self);
        // Again, to hear whether it is kept: nothing may be registered before.
        self.networks.forget_holdings()
    }

    fn compare(&self) -> Result<Comparison, ApiError> {
        let compared = self.compare_when_started()?;
        let lost = compared.dropped.into_iter().map(|d| (d.what, d.owner)).collect();
        Ok(Comparison { put_back: compared.put_back, lost })
    }

    fn put_back_networks(&self) -> Result<usize, ApiError> {
        self.networks.put_back_networks()
    }

    fn suspend(&self, blocks: &BTreeSet<(u32, IpNetwork)>) {
        self.suspend_blocks(blocks);
    }

    fn strays(&self) -> Vec<Stray> {
        let networks = self.networks.all();
        let own: BTreeSet<(u32, IpNetwork)> =
            self.networks.held().blocks.iter().map(|b| (b.network, b.block)).collect();
        let state = self.state();
        let strays =
            state.allocator.live_elsewhere().into_iter().filter_map(|(network, address, endpoint)| {
                let record = state.records.get(&endpoint).filter(|r| r.phase != Phase::Freed)?;
                let pool = networks.iter().find(|n| n.id == network)?.pool_of(address)?;
                let block = block_containing(pool.subnet, address)?;
                // One that is suspended is this node's all the same.
                let lost = !own.contains(&(network, block));
                lost.then(|| Stray { attachment: record.attachment.clone(), network, address, block })
            });
        strays.collect()
    }
}
