tower_api_key::scopes! {
    enum Scope {
        Read = "orders:read",
        Orders = "orders*",
    }
}

fn main() {
    _ = Scope::catalog();
}
