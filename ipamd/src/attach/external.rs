//! Addresses for endpoints that the plugins of others wire (driver `external`): `weft-ipam`.
//!
//! Such an endpoint is a record like every other, with the same evidence, witnesses and cool-down, and nothing of it is in the
//! kernel or the datapath but the pinned copy of the record. A network belongs to Weft's wiring or to that of others, never to both.

use super::{Attachments, plan};
use crate::calls::Stopwatch;
use ipamd_api::{
    AddRequest, AllocateRequest, AllocateResponse, ApiError, Driver, EndpointOptions, ErrorCode, Network,
    NetworkSpec,
};

impl Attachments {
    /// Gives the attachment addresses, or returns those that it has if they are as asked for.
    ///
    /// # Errors
    /// See [`ErrorCode`]; after an error nothing of this call is left.
    pub fn allocate_external(&self, request: &AllocateRequest) -> Result<AllocateResponse, ApiError> {
        self.allocate_external_timed(request, &Stopwatch::start())
    }

    /// The same; `watch` is told of the phases.
    ///
    /// # Errors
    /// As [`Self::allocate_external`].
    pub fn allocate_external_timed(
        &self,
        request: &AllocateRequest,
        watch: &Stopwatch,
    ) -> Result<AllocateResponse, ApiError> {
        let record = self.admit(&as_add(request)?, watch)?;
        Ok(AllocateResponse {
            endpoint: record.endpoint,
            nameservers: plan::dns(&record).nameservers,
            addresses: record.addresses,
        })
    }
}

/// The ADD whose wiring is nothing.
fn as_add(request: &AllocateRequest) -> Result<AddRequest, ApiError> {
    if let Some(other) = request.network.driver.filter(|driver| *driver != Driver::External) {
        let msg = format!(
            "addresses alone are given on networks of driver external, and network {} is asked for with driver {other}; remove the driver",
            request.network.name
        );
        return Err(ApiError::new(ErrorCode::InvalidNetwork, msg));
    }
    Ok(AddRequest {
        attachment: request.attachment.clone(),
        netns: request.netns.clone(),
        runtime: request.runtime.clone(),
        network: NetworkSpec { driver: Some(Driver::External), ..request.network.clone() },
        options: EndpointOptions {
            ips: request.ips.clone(),
            // The main plugin makes the routes, all of them.
            default_route: Some(false),
            labels: request.labels.clone(),
            configuration: request.configuration.clone(),
            ..EndpointOptions::default()
        },
    })
}

/// Refuses to wire what asks for a network of addresses only.
pub(super) fn refuse_spec(spec: &NetworkSpec) -> Result<(), ApiError> {
    if spec.driver == Some(Driver::External) { Err(not_ours(&spec.name)) } else { Ok(()) }
}

/// Refuses to wire an endpoint of a network whose endpoints others wire, unless that is what was asked for.
pub(super) fn refuse_network(network: &Network, asked: &NetworkSpec) -> Result<(), ApiError> {
    if network.driver == Driver::External && asked.driver != Some(Driver::External) {
        return Err(not_ours(&network.name));
    }
    Ok(())
}

fn not_ours(name: &str) -> ApiError {
    let msg = format!(
        "network {name} has driver external: Weft only gives its addresses, by weft-ipam, to the plugins that wire it; name another network for `weft`"
    );
    ApiError::new(ErrorCode::NetworkConflict, msg)
}
