use tower_api_key::record::ScopeType;

tower_api_key::scopes! {
    enum Scope {
        Read = "orders:read",
    }
    mod scope;
}

fn main() {
    _ = Scope::catalog();
    _ = <scope::Raed as ScopeType>::NAME;
}
