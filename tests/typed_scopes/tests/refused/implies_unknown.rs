tower_api_key::scopes! {
    enum Scope {
        Write = "orders:write" implies Raed,
        Read = "orders:read",
    }
}

fn main() {
    _ = Scope::catalog();
}
