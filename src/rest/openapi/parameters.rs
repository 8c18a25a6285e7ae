//! Parameters of queries.

use utoipa::openapi::{
    RefOr, Required, Schema,
    path::{Parameter, ParameterBuilder, ParameterIn},
    schema::ObjectBuilder,
};

use super::types::string;

pub(super) fn query(name: &str, description: &str, schema: impl Into<RefOr<Schema>>) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

/// A text to search for.
pub(super) fn searched() -> ObjectBuilder {
    string().min_length(Some(1)).max_length(Some(1024)).pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]*$"))
}
