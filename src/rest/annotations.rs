//! Reads the options of a method: `google.api.http` and our own.

use http::Method;
use prost_reflect::{DynamicMessage, ExtensionDescriptor, MethodDescriptor, Value};

use super::schema::{Schema, SchemaError};

/// One way to reach a method over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The HTTP method.
    pub method: Method,
    /// The path, variables in braces.
    pub template: String,
    /// The request field that the body fills; `*` all of it, empty none.
    pub body: String,
    /// The response field that is the answer's body; empty for all of it.
    pub response_body: String,
}

/// Who may call a method; the server's own types read the same option.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// A value of `onering.v1.Audience`.
    pub audience: i32,
    /// The scope that is asked for; may be empty.
    pub scope: String,
    /// Whether it is refused while webhooks are off.
    pub webhooks: bool,
    /// The method's full name, such as `onering.v1.KeyService/GetKey`; empty for
    /// what is no method.
    pub rpc: String,
}

/// The options that REST reads.
#[derive(Debug)]
pub struct Annotations {
    http: ExtensionDescriptor,
    http_status: Option<ExtensionDescriptor>,
    access: Option<ExtensionDescriptor>,
}

impl Annotations {
    /// Looks the options up.
    ///
    /// # Errors
    /// Where `google.api.http` is not described.
    pub fn new(schema: &Schema) -> Result<Self, SchemaError> {
        let pool = schema.pool();
        Ok(Self {
            http: pool
                .get_extension_by_name("google.api.http")
                .ok_or_else(|| SchemaError("google.api.http is not described".to_owned()))?,
            http_status: pool.get_extension_by_name("onering.v1.http_status"),
            access: pool.get_extension_by_name("onering.v1.access"),
        })
    }

    /// The bindings of a method, none where it is not on REST.
    ///
    /// # Errors
    /// Where a rule has no path.
    pub fn bindings(&self, method: &MethodDescriptor) -> Result<Vec<Binding>, SchemaError> {
        let options = method.options();
        if !options.has_extension(&self.http) {
            return Ok(Vec::new());
        }
        let value = options.get_extension(&self.http);
        let Some(rule) = value.as_message() else {
            return Ok(Vec::new());
        };
        let more = rule.get_field_by_name("additional_bindings");
        let more = more.as_ref().and_then(|v| v.as_list()).unwrap_or_default();
        std::iter::once(rule)
            .chain(more.iter().filter_map(Value::as_message))
            .map(|rule| {
                binding(rule).ok_or_else(|| {
                    SchemaError(format!("{}: a rule without a path", method.full_name()))
                })
            })
            .collect()
    }

    /// The status of a success: `http_status`, else 200.
    #[must_use]
    pub fn status(&self, method: &MethodDescriptor) -> http::StatusCode {
        self.http_status
            .as_ref()
            .and_then(|ext| method.options().get_extension(ext).as_i32())
            .and_then(|status| u16::try_from(status).ok())
            .and_then(|status| http::StatusCode::from_u16(status).ok())
            .unwrap_or(http::StatusCode::OK)
    }

    /// Who may call the method.
    #[must_use]
    pub fn access(&self, method: &MethodDescriptor) -> Access {
        let rpc = format!("{}/{}", method.parent_service().full_name(), method.name());
        let Some(ext) = &self.access else {
            return Access {
                rpc,
                ..Access::default()
            };
        };
        let options = method.options();
        let value = options.get_extension(ext);
        let get = |name| value.as_message().and_then(|m| m.get_field_by_name(name));
        Access {
            audience: get("audience")
                .and_then(|v| v.as_enum_number())
                .unwrap_or_default(),
            scope: get("scope")
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            webhooks: get("webhooks")
                .and_then(|v| v.as_bool())
                .unwrap_or_default(),
            rpc,
        }
    }
}

fn binding(rule: &DynamicMessage) -> Option<Binding> {
    let text = |name: &str| {
        let value = rule.get_field_by_name(name);
        value.and_then(|v| v.as_str().map(str::to_owned))
    };
    let methods = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ];
    let (name, method) = methods
        .into_iter()
        .find(|(name, _)| rule.has_field_by_name(name))?;
    Some(Binding {
        method,
        template: text(name)?,
        body: text("body").unwrap_or_default(),
        response_body: text("response_body").unwrap_or_default(),
    })
}
