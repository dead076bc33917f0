#!/usr/bin/env bash
# fetch.sh DIR [NAME...]: unpacks kernels of Debian's for virtual machines into DIR/NAME, all that are named below or
# some. It installs nothing. What is there is kept: remove DIR/NAME to have it anew.
set -euo pipefail
dir=$1
shift
declare -A suites=([5.10]=bullseye [6.1]=bookworm-security [6.12]=trixie [newest]=sid)
[ $# -gt 0 ] || set -- "${!suites[@]}"
package=linux-image-cloud-amd64 # depends on the newest of its suite

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# apt, with the suite in place of what this system is configured for
apt() {
	local command=$1
	shift
	"$command" -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$state/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$state/cache" \
		-o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 \
		-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false "$@"
}

# depends PACKAGE PATTERN: what the package depends on that matches
depends() {
	apt apt-cache show --no-all-versions "$1" | sed -n 's/^Depends: //p' | tr ',' '\n' |
		sed 's/ (.*//; s/|.*//; s/ //g' | grep -E "$2" || true
}

for name in "$@"; do
	suite=${suites[$name]}
	if [ -e "$dir/$name/.done" ]; then
		echo "$name: $(cat "$dir/$name/.done") (kept)"
		continue
	fi
	state=$work/$suite
	mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/packages"
	# from where this system has its own packages
	sources=$(apt-get indextargets --format '$(REPO_URI)' | sort -u)
	case $suite in
	*-security) source=$(grep -m 1 security <<<"$sources") ;;
	*) source=$(grep -m 1 'debian/*$' <<<"$sources") ;;
	esac
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $source $suite main" >"$state/sources.list"
	apt apt-get -qq update >/dev/null
	image=$(depends "$package" '^linux-image-[0-9]')
	# up to Debian 13 an image's package holds all; later it is split
	mapfile -t parts < <(depends "$image" '^linux-(binary|modules)-')
	rm -f "$state"/packages/*.deb
	(cd "$state/packages" && apt apt-get -qq download "$image" "${parts[@]}" >/dev/null)
	rm -rf "${dir:?}/$name"
	mkdir -p "$dir/$name"
	for file in "$state"/packages/*.deb; do
		dpkg-deb --fsys-tarfile "$file" | tar -x -C "$dir/$name" --wildcards --exclude './usr/share/*' './*'
	done
	echo "$image $(apt apt-cache show --no-all-versions "$image" | sed -n 's/^Version: //p')" >"$dir/$name/.done"
	echo "$name: $(cat "$dir/$name/.done")"
done
