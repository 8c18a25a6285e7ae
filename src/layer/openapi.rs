//! The API key in an OpenAPI document of the service.

use utoipa::{
    Modify,
    openapi::{
        Components, OpenApi,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::record::{IntoScope, Scope, ScopeCatalog};

/// Adds the API key to a document that [utoipa](utoipa) generates: the security scheme
/// [`api_key`](Self::NAME), whose description lists the scopes of the catalogue. Feature `openapi`.
///
/// A route names its scopes by the same enum as the code that requires them, so that neither can
/// name one that does not exist:
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_api_key::layer::{ApiKeySecurity, Granted};
/// use utoipa::{Modify as _, OpenApi};
///
/// tower_api_key::scopes! {
///     pub enum Scope {
///         /// Read orders.
///         OrdersRead = "orders:read",
///         /// Create and change orders.
///         OrdersWrite = "orders:write" implies OrdersRead,
///     }
///     pub mod scope;
/// }
///
/// /// Creates an order.
/// #[utoipa::path(
///     post,
///     path = "/orders",
///     security(("api_key" = [Scope::OrdersWrite])),
///     responses((status = 201, description = "The order."))
/// )]
/// async fn create(consumer: Granted<scope::OrdersWrite>) -> String {
///     format!("an order of {}", consumer.id())
/// }
///
/// #[derive(OpenApi)]
/// #[openapi(paths(create))]
/// struct Document;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let app: Router = Router::new().route("/orders", post(create));
/// let mut document = Document::openapi();
/// ApiKeySecurity::new(Scope::catalog()).modify(&mut document);
///
/// let json = serde_json::to_value(&document)?;
/// assert_eq!(json["components"]["securitySchemes"]["api_key"]["scheme"], "bearer");
/// assert_eq!(
///     json["paths"]["/orders"]["post"]["security"],
///     serde_json::json!([{ "api_key": ["orders:write"] }]),
/// );
/// # let _ = app;
/// # Ok(())
/// # }
/// ```
///
/// For operations that are built in code, [`requirement`](Self::requirement) makes the same.
#[derive(Clone, Debug)]
#[must_use]
pub struct ApiKeySecurity {
    catalog: ScopeCatalog,
}

impl ApiKeySecurity {
    /// The name of the security scheme: `api_key`.
    pub const NAME: &'static str = "api_key";

    /// A key in `Authorization: Bearer`, with the scopes of `catalog`.
    pub const fn new(catalog: ScopeCatalog) -> Self {
        Self { catalog }
    }

    /// What a route requires: a key with all of `scopes`. Returns a `Result` if they are
    /// [text](IntoScope).
    ///
    /// ```
    /// use tower_api_key::layer::ApiKeySecurity;
    /// use utoipa::openapi::path::OperationBuilder;
    ///
    /// tower_api_key::scopes! { pub enum Scope { OrdersRead = "orders:read" } }
    ///
    /// let list = OperationBuilder::new().security(ApiKeySecurity::requirement([Scope::OrdersRead]));
    /// # let _ = list;
    /// ```
    pub fn requirement<S: IntoScope>(
        scopes: impl IntoIterator<Item = S>,
    ) -> S::Outcome<SecurityRequirement> {
        S::make(scopes, |scopes| {
            SecurityRequirement::new(Self::NAME, scopes.iter().map(Scope::as_str))
        })
    }

    /// The security scheme.
    pub(crate) fn scheme(catalog: Option<&ScopeCatalog>) -> SecurityScheme {
        let mut description = "An API key, as `Authorization: Bearer …`.".to_owned();
        if let Some(catalog) = catalog {
            description.push_str(" Its scopes:\n");
            for scope in catalog.iter() {
                description.push_str(&format!("\n- `{}`", scope.name()));
                if !scope.description().is_empty() {
                    description.push_str(&format!(": {}", scope.description()));
                }
            }
        }
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        SecurityScheme::Http(bearer.description(Some(description)).build())
    }
}

impl Modify for ApiKeySecurity {
    fn modify(&self, document: &mut OpenApi) {
        let components = document.components.get_or_insert_with(Components::new);
        components.add_security_scheme(Self::NAME, Self::scheme(Some(&self.catalog)));
    }
}
