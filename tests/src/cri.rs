//! A client of the Kubernetes container runtime interface (CRI v1), as a kubelet is one, reduced to what the tests call.
//!
//! Owns the messages of those calls: names and field numbers are those of `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`;
//! fields that the tests neither set nor read are left out, which protobuf allows. They are written here by hand because
//! the crates that generate them need `protoc` at build time. Blocking: a runtime of its own, one call at a time.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    net::UnixStream,
    runtime::{Builder, Runtime},
};
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// How long a call may take; making a pod takes 0.2 s on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a kubelet says of a pod.
#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    /// Who it is.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodMetadata>,
    /// Host name; empty in tests of the network.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Resolver configuration of the pod.
    #[prost(message, optional, tag = "4")]
    pub dns: Option<PodDns>,
    /// Published ports.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<PodPort>,
    /// Labels.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    /// Annotations.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// What only Linux has.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPod>,
}

/// Identity of a pod.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodMetadata {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Unique id.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

/// Resolver configuration.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodDns {
    /// Name servers.
    #[prost(string, repeated, tag = "1")]
    pub servers: Vec<String>,
    /// Search domains.
    #[prost(string, repeated, tag = "2")]
    pub searches: Vec<String>,
    /// Options.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
}

/// A published TCP port.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodPort {
    /// Port inside.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// Port of the node.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

/// What only Linux pods have.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinuxPod {
    /// Namespaces.
    #[prost(message, optional, tag = "2")]
    pub security: Option<PodSecurity>,
}

/// Security settings of a pod.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodSecurity {
    /// Which namespaces it shares.
    #[prost(message, optional, tag = "1")]
    pub namespaces: Option<Namespaces>,
}

/// Namespaces of a pod or a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Namespaces {
    /// 0: the pod's own; 2: the node's.
    #[prost(int32, tag = "1")]
    pub network: i32,
    /// 0: one for the pod; 1: one for each container.
    #[prost(int32, tag = "2")]
    pub pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// The messages that are no more than the id of a pod or a container in their first field.
#[derive(Clone, PartialEq, Eq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatus {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(message, optional, tag = "5")]
    network: Option<PodNetwork>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct PodNetwork {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    additional: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct PodIp {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Id>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "1")]
    capabilities: Option<Capabilities>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Capabilities {
    #[prost(string, repeated, tag = "1")]
    add: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

/// What a command inside a container said.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Executed {
    /// Standard output.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    /// Standard error.
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// Exit code.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Id>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct RuntimeCondition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
}

/// A pod as the runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStatus {
    /// Whether it runs.
    pub ready: bool,
    /// Its addresses, the main one first; empty once it is stopped.
    pub ips: Vec<String>,
}

/// A client.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    client: Grpc<Channel>,
}

impl Cri {
    /// A client of the runtime that listens at `socket`. It connects at the first call, and again when the runtime
    /// was restarted.
    ///
    /// # Errors
    /// No runtime for the calls can be made.
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime =
            Builder::new_current_thread().enable_all().build().context("making a runtime for CRI calls")?;
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address has a meaning to TCP only.
        let endpoint = Endpoint::from_static("http://localhost").timeout(PATIENCE);
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_with_connector_lazy(connector)
        };
        Ok(Self { runtime, client: Grpc::new(channel) })
    }

    /// Whether the runtime answers and says that it and its network are ready.
    ///
    /// # Errors
    /// It does not answer.
    pub fn is_ready(&mut self) -> Result<bool> {
        let answer: StatusResponse = self.call("RuntimeService/Status", Empty {})?;
        let conditions = answer.status.unwrap_or_default().conditions;
        Ok(!conditions.is_empty() && conditions.iter().all(|condition| condition.status))
    }

    /// Whether the runtime has an image.
    ///
    /// # Errors
    /// It does not answer.
    pub fn has_image(&mut self, image: &str) -> Result<bool> {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: image.to_owned() }) };
        let answer: ImageStatusResponse = self.call("ImageService/ImageStatus", request)?;
        Ok(answer.image.is_some())
    }

    /// `RunPodSandbox`; the id of the pod.
    ///
    /// # Errors
    /// The runtime's, as when a CNI plugin failed.
    pub fn run_pod(&mut self, config: &PodConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        Ok(self.call::<_, Id>("RuntimeService/RunPodSandbox", request)?.id)
    }

    /// `StopPodSandbox`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn stop_pod(&mut self, pod: &str) -> Result<()> {
        self.call::<_, Empty>("RuntimeService/StopPodSandbox", Id { id: pod.to_owned() }).map(drop)
    }

    /// `RemovePodSandbox`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn remove_pod(&mut self, pod: &str) -> Result<()> {
        self.call::<_, Empty>("RuntimeService/RemovePodSandbox", Id { id: pod.to_owned() }).map(drop)
    }

    /// `PodSandboxStatus`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pod_status(&mut self, pod: &str) -> Result<PodStatus> {
        let request = Id { id: pod.to_owned() };
        let answer: PodSandboxStatusResponse = self.call("RuntimeService/PodSandboxStatus", request)?;
        let status = answer.status.context("an answer without status")?;
        let network = status.network.unwrap_or_default();
        let ips = std::iter::once(network.ip).chain(network.additional.into_iter().map(|ip| ip.ip));
        Ok(PodStatus { ready: status.state == 0, ips: ips.filter(|ip| !ip.is_empty()).collect() })
    }

    /// Ids of all pods.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pods(&mut self) -> Result<Vec<String>> {
        let answer: ListPodSandboxResponse = self.call("RuntimeService/ListPodSandbox", Empty {})?;
        Ok(answer.items.into_iter().map(|pod| pod.id).collect())
    }

    /// Creates and starts a container of `image` that runs what the image says; its id. It may send pings.
    ///
    /// # Errors
    /// The runtime's.
    pub fn start_container(&mut self, pod: &str, pod_config: &PodConfig, image: &str) -> Result<String> {
        let capabilities = Capabilities { add: vec!["NET_RAW".to_owned(), "NET_ADMIN".to_owned()] };
        let security = ContainerSecurity { capabilities: Some(capabilities) };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned() }),
            image: Some(ImageSpec { image: image.to_owned() }),
            linux: Some(LinuxContainer { security: Some(security) }),
        };
        let request = CreateContainerRequest {
            pod: pod.to_owned(),
            config: Some(config),
            pod_config: Some(pod_config.clone()),
        };
        let created: Id = self.call("RuntimeService/CreateContainer", request)?;
        self.call::<_, Empty>("RuntimeService/StartContainer", created.clone())?;
        Ok(created.id)
    }

    /// `ExecSync`.
    ///
    /// # Errors
    /// The runtime's; a command that fails has an exit code instead.
    pub fn exec(&mut self, container: &str, command: &[&str]) -> Result<Executed> {
        let request = ExecSyncRequest {
            container: container.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 30,
        };
        self.call("RuntimeService/ExecSync", request)
    }

    fn call<Q, A>(&mut self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{method}")).context("a method's path")?;
        let client = &mut self.client;
        let answer = self.runtime.block_on(async move {
            client.ready().await.context("connecting to the runtime")?;
            let call = client.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default());
            call.await.map_err(|status| anyhow::anyhow!("{}", status.message()))
        });
        answer.map(tonic::Response::into_inner).with_context(|| format!("{method} failed"))
    }
}
