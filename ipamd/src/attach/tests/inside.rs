//! The resolver inside of sandboxes: for whom it is asked, and that it is asked to leave before anybody could count on that.

use super::*;
use crate::dns::{Names as _, SandboxError, Sandboxes};
use ipamd_api::{AllocateRequest, DnsMode, Driver, netns::SandboxIdentity};
use std::collections::{BTreeMap, BTreeSet};

/// Remembers whom it answers.
#[derive(Default)]
struct Listening {
    open: Mutex<BTreeMap<EndpointId, PathBuf>>,
    refuses: AtomicBool,
    calls: Mutex<usize>,
}

impl Sandboxes for Listening {
    fn answer_in(&self, endpoint: EndpointId, sandbox: &SandboxIdentity) -> Result<(), SandboxError> {
        *self.calls.lock().unwrap() += 1;
        if self.refuses.load(Ordering::SeqCst) {
            return Err(SandboxError::Another(sandbox.path.clone()));
        }
        self.open.lock().unwrap().insert(endpoint, sandbox.path.clone());
        Ok(())
    }

    fn leave(&self, endpoint: EndpointId) {
        assert!(self.open.lock().unwrap().remove(&endpoint).is_some(), "nobody was there");
    }
}

impl Listening {
    fn open(&self) -> BTreeSet<EndpointId> {
        self.open.lock().unwrap().keys().copied().collect()
    }
}

fn started(node: &Node, listening: &Arc<Listening>) -> (Attachments, Doomed) {
    let (a, doomed, _) = node.start();
    a.answer_in_sandboxes(&(Arc::clone(listening) as _));
    (a, doomed)
}

fn macvlan(node: &Node, container: &str) -> AddRequest {
    node.kernel.add_parent("eth1");
    let mut request = add_request(container, &node.sandbox(container));
    request.network.name = "lan".into();
    request.network.driver = Some(Driver::Macvlan);
    request.network.parent = Some("eth1".into());
    request.network.pools.truncate(1);
    request.network.pools[0].subnet = "10.4.0.0/24".parse().unwrap();
    request
}

#[test]
fn who_has_no_programs_before_it_is_answered_inside() {
    let node = Node::new();
    let listening = Arc::<Listening>::default();
    let (a, _doomed) = started(&node, &listening);
    let one = a.add(&macvlan(&node, "one")).unwrap();
    assert_eq!(one.dns.nameservers, ["127.0.0.11"]);
    assert_eq!(listening.open(), [one.endpoint].into(), "before the answer");
    assert_eq!(a.asker_at(one.endpoint).unwrap().networks, [1]);
    let address = one.ips[0].address.ip();
    assert_eq!(a.asker(address), None, "an address of the outer link proves nothing");
    assert!(a.dns_listeners().borrow().is_empty(), "its gateway is somebody else");
    assert!(node.datapath.resolvers().unwrap().is_empty(), "the hooks of sockets leave it alone");

    let bridged = a.add(&add_request("bridged", &node.sandbox("bridged"))).unwrap();
    let mut silent = macvlan(&node, "silent");
    silent.network.name = "silent".into();
    silent.network.pools[0].subnet = "10.3.0.0/24".parse().unwrap();
    silent.network.dns_mode = Some(DnsMode::Off);
    assert!(a.add(&silent).unwrap().dns.nameservers.is_empty());
    assert_eq!(listening.open(), [one.endpoint].into());
    a.del(&del_request("bridged", by_generation(&bridged))).unwrap();

    // The next ipamd finds them in the journal.
    drop(a);
    let next = Arc::<Listening>::default();
    let (a, _doomed) = started(&node, &next);
    assert_eq!(next.open(), [one.endpoint].into());
    a.sweep().unwrap();
    assert_eq!(*next.calls.lock().unwrap(), 1, "what is open is left alone");
    a.del(&DelRequest { network: "lan".into(), ..del_request("one", by_generation(&one)) }).unwrap();
    assert_eq!(next.open(), [].into(), "before the answer");
}

#[test]
fn an_add_does_not_fail_with_it_and_the_sweep_tries_again() {
    let node = Node::new();
    let listening = Arc::<Listening>::default();
    let (a, _doomed) = started(&node, &listening);
    listening.refuses.store(true, Ordering::SeqCst);
    let one = a.add(&macvlan(&node, "one")).unwrap();
    let two = a.add(&macvlan(&node, "two")).unwrap();
    assert_eq!(listening.open(), [].into());
    // Nobody is asked to leave who never came.
    a.del(&DelRequest { network: "lan".into(), ..del_request("two", by_generation(&two)) }).unwrap();
    listening.refuses.store(false, Ordering::SeqCst);
    a.sweep().unwrap();
    assert_eq!(listening.open(), [one.endpoint].into());
}

#[test]
fn addresses_alone_bring_names_where_the_network_says_so() {
    let node = Node::new();
    let listening = Arc::<Listening>::default();
    let (a, _doomed) = started(&node, &listening);
    for (network, mode, expected) in
        [("quiet", None, &[][..]), ("named", Some(DnsMode::Sandbox), &["127.0.0.11".to_owned()][..])]
    {
        let add = add_request(network, &node.sandbox(network));
        let mut spec = NetworkSpec { name: network.into(), dns_mode: mode, ..add.network };
        spec.pools.truncate(1);
        spec.pools[0].subnet = if mode.is_some() { "10.5.0.0/24" } else { "10.6.0.0/24" }.parse().unwrap();
        let given = a
            .allocate_external(&AllocateRequest {
                attachment: add.attachment,
                netns: add.netns,
                runtime: add.runtime,
                network: spec,
                configuration: None,
                ips: Vec::new(),
                labels: BTreeMap::new(),
            })
            .unwrap();
        assert_eq!(given.nameservers, expected, "{network}");
        assert_eq!(listening.open().contains(&given.endpoint), mode.is_some(), "{network}");
    }
}
