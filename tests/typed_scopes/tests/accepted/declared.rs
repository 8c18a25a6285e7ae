tower_api_key::scopes! {
    enum Scope {
        Read = "orders:read",
        Write = "orders:write" implies Read,
    }
}

fn main() {
    _ = Scope::catalog();
}
