//! The JSON schema of documents (draft 2020-12), out of the types that read them.

use super::{DOCUMENT_VERSION, DocumentKind, StaticAddressSpec, Written};
use crate::{AddNameRequest, NetworkSpec, PublishRequest};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

/// The schema of a kind of document, or of all of them.
pub fn document_schema(kind: Option<DocumentKind>) -> Value {
    let mut schema = match kind {
        Some(kind) => of_kind(kind),
        None => json!({
            "title": "Weft documents",
            "description": "What `netctl apply`, `diff` and `delete` take.",
            "oneOf": DocumentKind::ALL.map(of_kind),
        }),
    };
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema
}

fn of_kind(kind: DocumentKind) -> Value {
    let mut spec = match kind {
        DocumentKind::Network => of_type::<NetworkSpec>(),
        DocumentKind::StaticAddress => of_type::<StaticAddressSpec>(),
        DocumentKind::DnsRecord => of_type::<AddNameRequest>(),
        DocumentKind::Publish => of_type::<PublishRequest>(),
    };
    // What `metadata.name` says.
    let named_by = kind.named_by();
    if let Some(fields) = spec["properties"].as_object_mut() {
        fields.remove(named_by);
    }
    if let Some(required) = spec["required"].as_array_mut() {
        required.retain(|field| field != named_by);
    }
    let mut schema = of_type::<Written>();
    schema["title"] = json!(kind.name());
    if let Some(keywords) = spec.as_object_mut() {
        // They are of the request.
        keywords.remove("title");
        keywords.remove("description");
    }
    schema["description"] = json!(kind.about());
    let fields = &mut schema["properties"];
    fields["apiVersion"]["const"] = json!(DOCUMENT_VERSION);
    fields["kind"] = json!({ "const": kind.name() });
    fields["spec"] = spec;
    schema
}

/// The schema of a type, whole: without references to other places.
fn of_type<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value()
}
