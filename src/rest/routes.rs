//! The table of routes, made from the annotations when the server starts.

use std::collections::HashMap;

use http::{Method, StatusCode, uri::PathAndQuery};
use prost_reflect::{MethodDescriptor, ServiceDescriptor};

use super::{
    annotations::{Access, Annotations, Binding},
    schema::{Field, MessageId, Schema, SchemaError, Shape, ValueKind},
};

/// The package whose services are on REST.
pub const PACKAGE: &str = "onering.v1";

/// Routes that stand for no method, and can be switched off like one. That is not so
/// of `/health`: what is switched off is not ill.
pub const PLAIN: [&str; 3] = ["GET /docs", "GET /metrics", "GET /openapi.json"];

/// Every route.
#[derive(Debug)]
pub struct Routes {
    all: Vec<Route>,
    methods: Vec<Access>,
    root: Node,
}

/// One way to reach one method.
#[derive(Debug)]
pub struct Route {
    /// The RPC.
    pub rpc: MethodDescriptor,
    /// Its path, such as `/onering.v1.KeyService/GetKey`.
    pub grpc_path: PathAndQuery,
    /// The HTTP method.
    pub method: Method,
    /// The path, variables in braces.
    pub template: String,
    /// The request fields that the path's variables fill, in order, by their
    /// place in the message's fields.
    pub variables: Vec<usize>,
    /// What the body fills.
    pub body: Body,
    /// The response field that is the answer, by its place; none for all of it.
    pub response_body: Option<usize>,
    /// The status of a success.
    pub status: StatusCode,
    /// Who may call it.
    pub access: Access,
    /// The request.
    pub input: MessageId,
    /// The response.
    pub output: MessageId,
}

/// What a route's body fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// The request.
    Whole,
    /// One message of the request, by its field's place.
    Field(usize),
}

/// What a path leads to.
#[derive(Debug)]
pub enum Found<'r, 'p> {
    /// A route, and its variables as they stand in the path, still encoded.
    Route(&'r Route, Vec<&'p str>),
    /// Other methods of the path, as `Allow` lists them.
    Methods(String),
    /// No such path.
    Nothing,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<String, Node>,
    variable: Option<Box<Node>>,
    /// Routes that end here: few, so a list.
    ends: Vec<(Method, usize)>,
}

impl Routes {
    /// Reads the annotations of every service in the package.
    ///
    /// # Errors
    /// Names the method whose annotation can't be served: two rules for one
    /// route, a variable or body that no field has, a stream.
    pub fn new(schema: &Schema) -> Result<Self, SchemaError> {
        let annotations = Annotations::new(schema)?;
        let mut routes = Self {
            all: Vec::new(),
            methods: Vec::new(),
            root: Node::default(),
        };
        let services = schema.pool().services();
        for service in services.filter(|s| s.package_name() == PACKAGE) {
            routes.add_service(schema, &annotations, &service)?;
        }
        Ok(routes)
    }

    fn add_service(
        &mut self,
        schema: &Schema,
        annotations: &Annotations,
        service: &ServiceDescriptor,
    ) -> Result<(), SchemaError> {
        for rpc in service.methods() {
            self.methods.push(annotations.access(&rpc));
            for binding in annotations.bindings(&rpc)? {
                let route = Route::new(schema, annotations, &rpc, binding)
                    .map_err(|what| SchemaError(format!("{}: {what}", rpc.full_name())))?;
                self.add(route)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, route: Route) -> Result<(), SchemaError> {
        let mut node = &mut self.root;
        for segment in segments(&route.template) {
            node = if segment.starts_with('{') {
                node.variable.get_or_insert_default()
            } else {
                node.literals.entry(segment.to_owned()).or_default()
            };
        }
        if node.ends.iter().any(|(method, _)| *method == route.method) {
            return Err(SchemaError(format!(
                "{}: {} {} leads to another method already",
                route.rpc.full_name(),
                route.method,
                route.template
            )));
        }
        node.ends.push((route.method.clone(), self.all.len()));
        self.all.push(route);
        Ok(())
    }

    /// Every route, in the order of the protos.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.all.iter()
    }

    /// Who may call each method, those that are not on REST too.
    pub fn methods(&self) -> impl Iterator<Item = &Access> {
        self.methods.iter()
    }

    /// What `path` leads to; HEAD is looked up as GET.
    #[must_use]
    pub fn find<'p>(&self, method: &Method, path: &'p str) -> Found<'_, 'p> {
        let method = match *method {
            Method::HEAD => &Method::GET,
            _ => method,
        };
        let mut search = Search {
            method,
            variables: Vec::new(),
            allowed: Vec::new(),
        };
        let found = path
            .strip_prefix('/')
            .and_then(|path| search.descend(&self.root, Some(path)));
        match found.and_then(|index| self.all.get(index)) {
            Some(route) => Found::Route(route, search.variables),
            None if search.allowed.is_empty() => Found::Nothing,
            None => Found::Methods(allow(&search.allowed)),
        }
    }
}

/// A walk down the tree. Literal segments come before variables; where they
/// lead to no route of the method, the variable is tried.
struct Search<'m, 'p> {
    method: &'m Method,
    variables: Vec<&'p str>,
    allowed: Vec<Method>,
}

impl<'p> Search<'_, 'p> {
    /// As deep as the longest template, however long the path is.
    fn descend(&mut self, node: &Node, rest: Option<&'p str>) -> Option<usize> {
        let Some(rest) = rest else {
            let end = node.ends.iter().find(|(method, _)| method == self.method);
            if end.is_none() {
                self.allowed
                    .extend(node.ends.iter().map(|(m, _)| m.clone()));
            }
            return end.map(|(_, index)| *index);
        };
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        let literal = node.literals.get(segment);
        if let Some(found) = literal.and_then(|node| self.descend(node, rest)) {
            return Some(found);
        }
        let variable = node.variable.as_ref().filter(|_| !segment.is_empty())?;
        self.variables.push(segment);
        let found = self.descend(variable, rest);
        if found.is_none() {
            self.variables.pop();
        }
        found
    }
}

/// `GET, HEAD, OPTIONS, POST`.
fn allow(methods: &[Method]) -> String {
    let mut names: Vec<String> = methods.iter().map(ToString::to_string).collect();
    if methods.contains(&Method::GET) {
        names.push("HEAD".to_owned());
    }
    names.push("OPTIONS".to_owned());
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn segments(template: &str) -> impl Iterator<Item = &str> {
    template.split('/').skip(1)
}

impl Route {
    fn new(
        schema: &Schema,
        annotations: &Annotations,
        rpc: &MethodDescriptor,
        binding: Binding,
    ) -> Result<Self, String> {
        if rpc.is_client_streaming() || rpc.is_server_streaming() {
            return Err("a stream can't be on REST".to_owned());
        }
        let id = |name: &str| schema.id(name).ok_or_else(|| format!("no message {name}"));
        let input = id(rpc.input().full_name())?;
        let output = id(rpc.output().full_name())?;
        let grpc_path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
        Ok(Self {
            grpc_path: grpc_path.try_into().map_err(|_| "no path".to_owned())?,
            variables: variables(schema, input, &binding.template)?,
            body: match binding.body.as_str() {
                "" => Body::None,
                "*" => Body::Whole,
                name => Body::Field(body_field(schema, input, name)?),
            },
            response_body: match binding.response_body.as_str() {
                "" => None,
                name => Some(place(schema, output, name)?.0),
            },
            status: annotations.status(rpc),
            access: annotations.access(rpc),
            method: binding.method,
            template: binding.template,
            rpc: rpc.clone(),
            input,
            output,
        })
    }
}

fn place<'s>(schema: &'s Schema, of: MessageId, name: &str) -> Result<(usize, &'s Field), String> {
    let message = schema.message(of);
    message
        .field(name)
        .ok_or_else(|| format!("{} has no field {name}", message.descriptor.full_name()))
}

fn body_field(schema: &Schema, input: MessageId, name: &str) -> Result<usize, String> {
    let (index, field) = place(schema, input, name)?;
    match (&field.shape, &field.kind) {
        (Shape::One, ValueKind::Message(_)) => Ok(index),
        _ => Err(format!("the body {name} is not a message")),
    }
}

/// The fields of a template's variables. Plain ones only: `{name}`.
fn variables(schema: &Schema, input: MessageId, template: &str) -> Result<Vec<usize>, String> {
    if !template.starts_with('/') || template.contains(['*', ':', '=']) {
        return Err(format!("{template}: only plain segments and {{names}}"));
    }
    let mut found = Vec::new();
    for segment in segments(template).filter(|s| s.contains(['{', '}'])) {
        let name = segment
            .strip_prefix('{')
            .and_then(|s| s.strip_suffix('}'))
            .ok_or_else(|| format!("{template}: a variable is a whole segment"))?;
        let (index, field) = place(schema, input, name)?;
        let scalar = matches!(field.kind, ValueKind::Scalar(_) | ValueKind::Enum(_));
        if !matches!(field.shape, Shape::One) || !scalar {
            return Err(format!("{template}: {name} can't be in a path"));
        }
        found.push(index);
    }
    Ok(found)
}
