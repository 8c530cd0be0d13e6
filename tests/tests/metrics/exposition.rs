//! What a running ipamd exports, to whom, and at which cost.

use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};
use weft_tests::{
    Node, Sandbox, poll_until,
    scrape::{Exposition, get_from, scrape},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for an exposition that is as it should be; one is a second old at most.
fn await_scrape(node: &Node, what: &str, is: impl Fn(&Exposition) -> bool) -> Exposition {
    let mut last = Exposition::default();
    let found = poll_until(PATIENCE, what, || {
        last = scrape(&node.run_dir()).unwrap();
        is(&last)
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {last:#?}"));
    last
}

#[test]
fn the_documentation_has_every_metric_and_no_other() {
    let node = Node::start_new("documented").unwrap();
    let sandbox = Sandbox::new().unwrap();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    node.cni().unwrap().container("c1").netns(sandbox.path()).add(&netconf).unwrap();
    let exported = scrape(&node.run_dir()).unwrap();

    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")).unwrap();
    let mut documented = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `weft_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _unit, help] = cells[..] else { panic!("{line}") };
        let labels: BTreeSet<String> =
            labels.split(", ").map(|l| l.trim_matches('`').to_owned()).filter(|l| !l.is_empty()).collect();
        documented.insert(name.trim_matches('`').to_owned(), (kind.to_owned(), help.to_owned(), labels));
    }
    let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&exported.types), documented.keys().cloned().collect::<Vec<_>>());
    for (name, (kind, help, _)) in &documented {
        assert_eq!((&exported.types[name], &exported.help[name]), (kind, help), "{name}");
    }
    let mut told = BTreeSet::new();
    for series in exported.samples.keys() {
        let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|family| exported.types.get(*family).is_some_and(|kind| kind == "histogram"));
        let family = family.unwrap_or(name);
        let labels: BTreeSet<String> = labels
            .split(',')
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .filter(|label| label != "le")
            .collect();
        assert_eq!(labels, documented[family].2, "{series}");
        told.insert(family.to_owned());
    }
    // What has no series on a fresh node of its own.
    let silent: Vec<&String> = documented.keys().filter(|name| !told.contains(*name)).collect();
    assert_eq!(silent, ["weft_pool_exhaustion_seconds", "weft_store_errors_total"]);
    assert!(exported.samples.len() < 600, "{} series", exported.samples.len());
}

#[test]
fn it_tells_what_happened_on_the_node() {
    let node = Node::start_new("told").unwrap();
    let (one, two) = (Sandbox::new().unwrap(), Sandbox::new().unwrap());
    let blue = json!({
        "cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/30",
        "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    });
    let mut bare = blue.clone();
    bare["runtimeConfig"] = json!({});
    let cni = node.cni().unwrap().container("c1").netns(one.path());
    cni.add(&blue).unwrap();
    let second = node.cni().unwrap().container("c2").netns(two.path());
    assert_eq!(second.call("ADD", &bare).unwrap().unwrap_err().code, 101);
    // To a network that is not there: a drop whose reason is not looked at here.
    one.ping("10.9.0.1").unwrap();

    let told =
        await_scrape(&node, "both ADDs", |e| e.value("weft_calls_total{verb=\"ADD\",code=\"101\"}").is_ok());
    let pool = |metric: &str, state: &str| {
        format!("weft_pool_{metric}{{network=\"blue\",pool=\"10.9.0.0/30\",state=\"{state}\"}}")
    };
    for (series, value) in [
        ("weft_ready", 1.0),
        ("weft_store_up", 1.0),
        ("weft_networks", 1.0),
        ("weft_calls_total{verb=\"ADD\",code=\"0\"}", 1.0),
        ("weft_calls_total{verb=\"ADD\",code=\"101\"}", 1.0),
        ("weft_call_duration_seconds_count{verb=\"ADD\"}", 2.0),
        // The second ADD did not come to the datapath.
        ("weft_call_phase_duration_seconds_count{verb=\"ADD\",phase=\"datapath\"}", 1.0),
        ("weft_call_phase_duration_seconds_count{verb=\"ADD\",phase=\"allocate\"}", 2.0),
        ("weft_endpoints{phase=\"live\"}", 1.0),
        ("weft_endpoints{phase=\"freed\"}", 0.0),
        (&pool("addresses", "used"), 1.0),
        (&pool("addresses", "free"), 0.0),
        (&pool("blocks", "own"), 1.0),
        (&pool("blocks", "others"), 0.0),
        (&pool("blocks", "unowned"), 0.0),
        ("weft_peers{state=\"alive\"}", 0.0),
        ("weft_map_entries{map=\"ENDPOINTS\"}", 1.0),
        ("weft_map_max_entries{map=\"ENDPOINTS\"}", 16384.0),
        // Tries are counted, too.
        ("weft_map_entries{map=\"POOLS4\"}", 1.0),
        ("weft_nat_ports", 4536.0),
        ("weft_history_unwritten_total", 0.0),
    ] {
        assert_eq!(told.value(series).unwrap(), value, "{series}");
    }
    assert!(told.value("weft_map_entries{map=\"PUBLISHED\"}").unwrap() >= 1.0);
    assert!(told.value("weft_map_entries{map=\"PUBLISHED\"}").unwrap() < 20.0);
    assert!(told.value("weft_memory_bytes").unwrap() > 1e6);
    assert!(told.value("weft_store_call_duration_seconds_count{call=\"swap\"}").unwrap() > 0.0);
    let build = told.samples.keys().find(|series| series.starts_with("weft_build_info{")).unwrap();
    assert!(
        build.contains(&format!("version=\"{}\"", env!("CARGO_PKG_VERSION")))
            && build.contains("node=\"told\"")
    );
    for (series, value) in told.samples.iter().filter(|(series, _)| series.starts_with("weft_drops_total")) {
        let reason = series.split('"').nth(1).unwrap();
        assert!(*value <= node.drops(reason).unwrap() as f64, "{series}");
    }

    cni.del(&blue).unwrap();
    let told = await_scrape(&node, "the removal behind the DEL", |e| {
        e.value("weft_call_phase_duration_seconds_count{verb=\"DEL\",phase=\"wire\"}").unwrap() == 1.0
            && e.value("weft_endpoints{phase=\"freed\"}").unwrap() == 1.0
    });
    assert_eq!(told.value("weft_calls_total{verb=\"DEL\",code=\"0\"}").unwrap(), 1.0);
    assert_eq!(told.value("weft_map_entries{map=\"ENDPOINTS\"}").unwrap(), 0.0);
    assert_eq!(told.value(&pool("addresses", "cooling")).unwrap(), 1.0);
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn metrics_are_served_at_the_configured_addresses_and_nowhere_else() {
    let silent = Node::start_new("silent").unwrap();
    let listening = |node: &Node| {
        let lines = node.netns().sh("ss -Hltn").unwrap();
        lines
            .lines()
            .filter_map(|l| l.split_ascii_whitespace().nth(3).map(str::to_owned))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(listening(&silent), BTreeSet::new(), "nothing, unless it is asked for");
    drop(silent);

    let settings =
        "metrics_listen = [\"127.0.0.1:9464\", \"[::]:9465\", \"192.0.2.77:9466\", \"127.0.0.1:9467\"]";
    let mut node = Node::builder("served").settings(settings).build().unwrap();
    for words in [
        "link add up0 type veth peer name up1",
        "addr add 192.0.2.10/24 dev up0",
        "link set up0 up",
        "link set up1 up",
    ] {
        node.netns().ip(words).unwrap();
    }
    let taken = node.netns().run(|| TcpListener::bind(at("127.0.0.1:9467"))).unwrap().unwrap();
    node.start().unwrap();
    let get = |node: &Node, address: &str, path: &str| {
        let (address, path) = (at(address), path.to_owned());
        node.netns().run(move || get_from(address, &path)).unwrap()
    };
    let served = ["127.0.0.1:9464", "[::]:9465", "192.0.2.77:9466", "127.0.0.1:9467"];
    assert_eq!(listening(&node), served.map(str::to_owned).into());
    let (status, body) = get(&node, "127.0.0.1:9464", "/metrics").unwrap();
    assert_eq!(status, 200);
    Exposition::read(&body).unwrap();
    assert_eq!(get(&node, "[::1]:9465", "/metrics").unwrap().0, 200);
    // Nothing of the API, by no spelling.
    for path in ["/v1/status", "/", "/metrics/", "/v1/networks", "//metrics", "/metrics/../v1/status"] {
        assert_eq!(get(&node, "127.0.0.1:9464", path).unwrap().0, 404, "{path}");
    }
    for elsewhere in ["192.0.2.10:9464", "[::1]:9464", "192.0.2.10:9465", "127.0.0.1:9465", "192.0.2.10:9466"]
    {
        assert!(get(&node, elsewhere, "/metrics").is_err(), "{elsewhere}");
    }
    // Nor does a container reach what is for the node alone.
    let sandbox = Sandbox::new().unwrap();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    node.cni().unwrap().container("c1").netns(sandbox.path()).add(&netconf).unwrap();
    for address in ["10.9.0.1:9464", "192.0.2.10:9464", "127.0.0.1:9464"] {
        let address = at(address);
        assert!(sandbox.run(move || get_from(address, "/metrics")).unwrap().is_err(), "{address}");
    }
    // An address that comes later, and a port that is given back.
    node.netns().ip("addr add 192.0.2.77/24 dev up0").unwrap();
    assert_eq!(get(&node, "192.0.2.77:9466", "/metrics").unwrap().0, 200);
    assert!(node.log_tail().contains("free the port"), "{}", node.log_tail());
    drop(taken);
    poll_until(PATIENCE, "the port to be served", || get(&node, "127.0.0.1:9467", "/metrics").is_ok())
        .unwrap();
    assert!(node.stop().unwrap().success());
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let settings = "metrics_listen = [\"127.0.0.1:9464\"]\nrequest_timeout = 1";
    let node = Node::builder("idle").settings(settings).start().unwrap();
    let answered = node.netns().run(|| {
        // More than are served at a time, and all of them stay.
        let idle: Vec<_> = (0..300).map(|_| TcpStream::connect(at("127.0.0.1:9464")).unwrap()).collect();
        let answered = get_from(at("127.0.0.1:9464"), "/metrics");
        drop(idle);
        answered
    });
    assert_eq!(answered.unwrap().unwrap().0, 200);
    assert!(scrape(&node.run_dir()).is_ok(), "the API's socket has places of its own");
}

#[test]
fn a_hundred_scrapers_cost_one_gathering_a_second() {
    const SCRAPERS: usize = 100;
    const ADDS: usize = 10;
    let node = Node::start_new("scraped").unwrap();
    let netconf = json!({"cniVersion": "1.0.0", "name": "blue", "type": "weft", "subnet": "10.9.0.0/24"});
    let sandboxes: Vec<_> = (0..ADDS).map(|_| Sandbox::new().unwrap()).collect();
    let adds = |round: &str| {
        let mut times: Vec<Duration> = sandboxes
            .iter()
            .enumerate()
            .map(|(number, sandbox)| {
                let cni = node.cni().unwrap().container(&format!("{round}{number}")).netns(sandbox.path());
                let begun = Instant::now();
                cni.add(&netconf).unwrap();
                let took = begun.elapsed();
                cni.del(&netconf).unwrap();
                took
            })
            .collect();
        times.sort();
        times[ADDS / 2]
    };
    adds("first");
    let alone = adds("alone");
    let run_dir = &node.run_dir();
    let begun = Instant::now();
    let (scraped, gatherings, answers) = std::thread::scope(|scope| {
        // Each goes on until its sender is dropped.
        let (senders, scrapers): (Vec<mpsc::Sender<()>>, Vec<_>) = (0..SCRAPERS)
            .map(|_| {
                let (sender, ended) = mpsc::channel();
                let scraper = scope.spawn(move || {
                    let (mut seen, mut answers) = (BTreeSet::new(), 0_usize);
                    loop {
                        let exposition = scrape(run_dir).unwrap();
                        // It differs from gathering to gathering by more than a clock of nanoseconds repeats.
                        seen.insert(exposition.value("weft_scrape_duration_seconds").unwrap().to_bits());
                        answers += 1;
                        // As often as no Prometheus asks.
                        if ended.recv_timeout(Duration::from_millis(500)) != Err(RecvTimeoutError::Timeout) {
                            break (seen, answers);
                        }
                    }
                });
                (sender, scraper)
            })
            .unzip();
        let scraped = adds("scraped");
        drop(senders);
        let (mut all, mut count) = (BTreeSet::new(), 0);
        for scraper in scrapers {
            let (seen, answers) = scraper.join().unwrap();
            all.extend(seen);
            count += answers;
        }
        (scraped, all.len(), count)
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "ADD, median: {alone:?} alone, {scraped:?} with {answers} scrapes in {seconds:.1} s, {gatherings} gatherings"
    );
    assert!(answers >= SCRAPERS, "{answers}");
    assert!(gatherings as f64 <= seconds + 2.0, "{gatherings} gatherings in {seconds} s");
    assert!(scraped < alone * 10 + Duration::from_millis(200), "{alone:?} became {scraped:?}");
}
