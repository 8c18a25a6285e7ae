//! Lists of rules become a function that runs them all, and a macro that makes a test of each.

/// `suite! { module, macro_name, runner(fixture) ... }`: see its uses. `$dollar` is `$`, for the
/// macro that this one defines.
macro_rules! suite {
    (
        $dollar:tt
        $(#[$function_doc:meta])*
        fn $suite:ident<$($parameter:ident: $bound:path),+ $(,)?>($fixture:ident: $made:ty) from $module:ident;
        $(#[$macro_doc:meta])*
        macro $macro_name:ident;
        $($rule:ident)+
    ) => {
        $(#[$function_doc])*
        ///
        /// `new` makes what each rule is checked on, and a guard that lives as long, such as a
        /// temporary folder; `()` if there is none.
        ///
        /// # Errors
        ///
        /// The rules that are broken.
        pub async fn $suite<$($parameter: $bound,)+ Guard>(
            new: impl AsyncFn() -> ($made, Guard),
        ) -> Result<(), super::Violations> {
            let mut checked = Vec::new();
            $(
                let ($fixture, guard) = new().await;
                checked.push((stringify!($rule), $rule($fixture).await));
                drop(guard);
            )+
            super::Violations::of(checked)
        }

        $(#[$macro_doc])*
        #[macro_export]
        macro_rules! $macro_name {
            ($dollar name:ident, $dollar new:expr $dollar(,)?) => {
                mod $dollar name {
                    #[allow(unused_imports, reason = "what `new` names is in the module around it")]
                    use super::*;

                    $(
                        #[tokio::test]
                        async fn $rule() -> Result<(), $dollar crate::test_util::contract::Violation> {
                            let (made, _guard) = ($dollar new)().await;
                            $dollar crate::test_util::contract::$module::$rule(made).await
                        }
                    )+
                }
            };
        }
    };
}

pub(super) use suite;
