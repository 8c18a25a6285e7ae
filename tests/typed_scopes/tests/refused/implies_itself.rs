tower_api_key::scopes! {
    enum Scope {
        Read = "orders:read" implies Read,
    }
}

fn main() {
    _ = Scope::catalog();
}
