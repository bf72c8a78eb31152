# Installs what ./test needs and a machine with only cargo, Go, Node and Python
# lacks. Quick when all is there. What can't be installed is an error that says
# what to do: a test is never left out for the want of a tool.

grpcurl_version=v1.9.3
buf_version=1.75.0
# The public libraries of Standard Webhooks, from npm and PyPI.
standardwebhooks_npm=1.1.1
standardwebhooks_pypi=1.1.0
# Python's gRPC with its compiler, for a worker over generated stubs.
grpcio=1.85.1
postgres_oldest=15

install_tools() {
    need cargo 'the Rust toolchain (see rust-version in Cargo.toml)'
    need cargo-clippy 'the clippy component (rustup component add clippy)'
    need cargo-fmt 'the rustfmt component (rustup component add rustfmt)'
    need go 'Go 1.22 or later'
    need npm 'Node.js 20 or later with npm'
    need python3 'Python 3.9 or later'
    need git 'git'
    install_packages
    install_grpcurl
    install_buf
    install_standardwebhooks
    install_grpcio
}

die() {
    echo "$*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null || die "$1 is missing: install $2, then run ./test again."
}

# The folder of the newest PostgreSQL's programs. Debian keeps them off the PATH.
postgres_bin() {
    local bin
    for bin in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) \
        "$(pg_config --bindir 2>/dev/null)"; do
        if [[ -x $bin/initdb && -x $bin/postgres ]] && (($(postgres_major "$bin") >= postgres_oldest)); then
            echo "$bin"
            return
        fi
    done
    return 1
}

chromium() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
}

postgres_major() {
    "$1/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/'
}

install_packages() {
    local missing=()
    postgres_bin >/dev/null || missing+=(postgresql)
    command -v redis-server >/dev/null || missing+=(redis-server)
    PATH=$PATH:/usr/sbin command -v haproxy >/dev/null || missing+=(haproxy)
    command -v jq >/dev/null || missing+=(jq)
    command -v curl >/dev/null || missing+=(curl)
    chromium >/dev/null || missing+=(chromium)
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    if ((${#missing[@]})); then
        install_with_apt "${missing[@]}"
    fi
    need redis-server 'Redis 7 or later'
    PATH=$PATH:/usr/sbin need haproxy 'HAProxy 2.4 or later'
    need jq jq
    need curl curl
    ONERING_TEST_CHROMIUM=$(chromium) || die 'Chromium is missing: install it, then run ./test again.'
    export ONERING_TEST_CHROMIUM
    ONERING_TEST_POSTGRES_BIN=$(postgres_bin) ||
        die "PostgreSQL $postgres_oldest or later is missing: install its server (initdb and postgres), then run ./test again."
    export ONERING_TEST_POSTGRES_BIN
}

install_with_apt() {
    local log="$logs/apt.log" as_root=(env)
    command -v apt-get >/dev/null || die "Install $*, then run ./test again: there is no apt-get here to do it."
    if ((EUID != 0)); then
        sudo -n true 2>/dev/null ||
            die "Install $*, then run ./test again: that needs root, and sudo asks for a password."
        as_root=(sudo -n env)
    fi
    echo "Installing $*"
    mkdir -p "$logs"
    if ! {
        "${as_root[@]}" apt-get -qq update &&
            "${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@"
    } >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        die "apt-get failed: install $*, then run ./test again."
    fi
}

# The version is in the path, so that another version is another installation.
install_grpcurl() {
    local bin="$root/target/test-tools/grpcurl-$grpcurl_version"
    if [[ ! -x $bin/grpcurl ]]; then
        echo "Installing grpcurl $grpcurl_version"
        GOBIN=$bin GOFLAGS='' go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version" ||
            die "go install failed: grpcurl $grpcurl_version could not be built in $bin; look at Go's message above."
    fi
    export ONERING_TEST_GRPCURL=$bin/grpcurl
}

install_buf() {
    local prefix="$root/target/test-tools/buf-$buf_version"
    local buf="$prefix/node_modules/.bin/buf"
    if ! "$buf" --version >/dev/null 2>&1; then
        echo "Installing buf $buf_version"
        npm install --prefix "$prefix" --no-audit --no-fund --loglevel=error "@bufbuild/buf@$buf_version" ||
            die "npm install failed: buf $buf_version could not be installed in $prefix; look at npm's message above."
    fi
    export ONERING_TEST_BUF=$buf
}

install_standardwebhooks() {
    local node="$root/target/test-tools/standardwebhooks-npm-$standardwebhooks_npm"
    local python="$root/target/test-tools/standardwebhooks-pypi-$standardwebhooks_pypi"
    if [[ ! -d $node/node_modules/standardwebhooks ]]; then
        echo "Installing standardwebhooks $standardwebhooks_npm from npm"
        npm install --prefix "$node" --no-audit --no-fund --loglevel=error "standardwebhooks@$standardwebhooks_npm" ||
            die "npm install failed: standardwebhooks $standardwebhooks_npm could not be installed in $node."
    fi
    if [[ ! -d $python/standardwebhooks ]]; then
        echo "Installing standardwebhooks $standardwebhooks_pypi from PyPI"
        python3 -m pip install --quiet --disable-pip-version-check --target "$python" "standardwebhooks==$standardwebhooks_pypi" ||
            die "pip install failed: standardwebhooks $standardwebhooks_pypi could not be installed in $python (apt-get install python3-pip)."
    fi
    export ONERING_TEST_STANDARDWEBHOOKS_NPM=$node ONERING_TEST_STANDARDWEBHOOKS_PYPI=$python
}

install_grpcio() {
    local python="$root/target/test-tools/grpcio-tools-$grpcio"
    if [[ ! -d $python/grpc_tools ]]; then
        echo "Installing grpcio-tools $grpcio from PyPI"
        python3 -m pip install --quiet --disable-pip-version-check --target "$python" "grpcio-tools==$grpcio" ||
            die "pip install failed: grpcio-tools $grpcio could not be installed in $python (apt-get install python3-pip)."
    fi
    export ONERING_TEST_GRPCIO=$python
}
