#!/bin/sh
# Makes the secrets that deploy/compose.yaml reads, each in a file of its own:
#   sh deploy/compose/secrets.sh /etc/snc
# What is there already stays. Only the folder's owner can enter it; the files can be read by anybody
# who is let in, because each container runs as another user and gets only those it is given.
set -eu
folder=${1:?name the folder for the secrets, such as /etc/snc}

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

keep() {
    if [ ! -e "$folder/$1" ]; then
        printf %s "$2" >"$folder/$1"
        chmod 0644 "$folder/$1"
    fi
}

umask 077
mkdir -p "$folder"
chmod 0700 "$folder"
keep postgres-password "$(random)"
keep store-url "postgresql://snc:$(cat "$folder/postgres-password")@postgres:5432/snc"
keep grafana-password "$(random)"
# Prometheus reads it at every scrape: `snc token create prometheus --scope read` makes a real one.
keep prometheus-token none
