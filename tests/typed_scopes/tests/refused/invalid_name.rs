tower_api_key::scopes! {
    enum Scope {
        Read = "orders read",
    }
}

fn main() {
    _ = Scope::catalog();
}
