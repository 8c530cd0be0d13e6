use super::*;
use serde_json::json;

fn document(kind: &str, name: &str, spec: impl Into<Value>) -> Value {
    let spec: Value = spec.into();
    json!({"apiVersion": "weft/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

#[test]
fn each_kind_is_the_request_under_its_name() {
    let network = Declared::read(&document("Network", "blue", json!({"mtu": 1400}))).unwrap();
    let spec = NetworkSpec { name: "blue".into(), mtu: Some(1400), ..NetworkSpec::default() };
    assert_eq!(network, Declared::Network(spec));

    let kept = document("StaticAddress", "db", json!({"network": "blue", "addresses": ["10.0.0.5"]}));
    let Declared::StaticAddress(kept) = Declared::read(&kept).unwrap() else { panic!() };
    assert_eq!((kept.name.as_str(), kept.network.as_str(), kept.addresses.len()), ("db", "blue", 1));

    let record = document("DnsRecord", "printer", json!({"network": "blue", "target": "db"}));
    let record = Declared::read(&record).unwrap();
    assert_eq!(
        (record.kind(), record.name(), record.network()),
        (DocumentKind::DnsRecord, "printer", Some("blue"))
    );

    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let ports = Declared::read(&document("Publish", "4f3c", json!({"mappings": [mapping]}))).unwrap();
    assert_eq!((ports.kind(), ports.name(), ports.network()), (DocumentKind::Publish, "4f3c", None));
}

#[test]
fn what_is_wrong_is_told_by_its_field() {
    let mut newer = document("Network", "blue", json!({}));
    newer["apiVersion"] = json!("weft/v2");
    let mut unnamed = document("Network", "blue", json!({}));
    unnamed["metadata"] = json!({});
    let mut more = document("Network", "blue", json!({}));
    more["status"] = json!({});
    for (document, field, words) in [
        (json!("blue"), "document", "no mapping"),
        (json!({}), "apiVersion", "weft/v1"),
        (newer, "apiVersion", "\"weft/v2\""),
        (document("Pod", "blue", json!({})), "kind", "`StaticAddress`"),
        (unnamed, "metadata", "missing field `name`"),
        (more, "status", "unknown field `status`"),
        (document("Network", "blue", json!({"mtuu": 1})), "spec.mtuu", "unknown field `mtuu`"),
        (document("Network", "blue", json!({"name": "red"})), "spec.name", "metadata.name"),
        (
            document("Publish", "a", json!({"container": "b", "mappings": []})),
            "spec.container",
            "metadata.name",
        ),
        (document("Publish", "a", json!({})), "spec", "missing field `mappings`"),
        (document("Network", "blue", json!({"mtu": "big"})), "spec.mtu", "invalid type: string \"big\""),
        (
            document("Network", "blue", json!({"pools": [{"subnet": "10.0.0.0/33"}]})),
            "spec.pools[0].subnet",
            "invalid",
        ),
        (
            document("StaticAddress", "db", json!({"network": "blue", "addresses": ["10.0.0.5", "x"]})),
            "spec.addresses[1]",
            "invalid IP address",
        ),
    ] {
        let error = Declared::read(&document).unwrap_err();
        assert_eq!(error.field, field, "{document}: {error}");
        assert!(error.why.contains(words), "{document}: {error}");
    }
}

#[cfg(feature = "schema")]
mod schema {
    use super::*;

    /// The fields of an object's schema.
    fn fields(schema: &Value) -> BTreeSet<String> {
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_schema_has_the_fields_that_are_read_and_no_others() {
        for kind in DocumentKind::ALL {
            let schema = document_schema(Some(kind));
            let wrong = json!({
                "apiVersion": DOCUMENT_VERSION, "kind": kind, "metadata": {"name": "x"}, "spec": {"none such": 1},
            });
            // What the reader would have taken instead is in its error.
            let error = Declared::read(&wrong).unwrap_err().why;
            let named = error.split('`').skip(3).step_by(2).map(str::to_owned);
            let mut read: BTreeSet<String> = named.collect();
            assert!(read.remove(kind.named_by()), "{error}");
            assert_eq!(fields(&schema["properties"]["spec"]), read, "{kind}");
            assert_eq!(fields(&schema), ["apiVersion", "kind", "metadata", "spec"].map(str::to_owned).into());
            for object in [&schema, &schema["properties"]["spec"], &schema["properties"]["metadata"]] {
                assert_eq!(object["additionalProperties"], json!(false), "{kind}: {object}");
            }
            assert!(!schema.to_string().contains("$ref"), "{kind} refers to another place");
        }
        assert_eq!(document_schema(None)["oneOf"].as_array().unwrap().len(), DocumentKind::ALL.len());
    }
}
