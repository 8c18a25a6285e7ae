tower_api_key::scopes! {
    enum Scope {
        Read = "orders:read",
    }
}

fn main() {
    _ = tower_api_key::RequireScope::one(Scope::Raed);
}
