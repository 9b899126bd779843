#!/bin/sh
# certbot runs this when it has a new certificate (--deploy-hook), with RENEWED_LINEAGE set: the
# relay, and coturn where it is, get their copies and load them. Nobody is cut off.
set -eu

relay_folder=${RELAY_FOLDER:-/etc/meshpeer/tls}
relay_group=${RELAY_GROUP:-meshpeer}
coturn_folder=${COTURN_FOLDER:-/etc/coturn/tls}
coturn_group=${COTURN_GROUP:-turnserver}

copy() { # to a folder, for a group to read
    for name in fullchain.pem privkey.pem; do
        # First beside it, then in its place: nobody reads half a file.
        install -m 640 -g "$2" "$RENEWED_LINEAGE/$name" "$1/$name.new"
        mv -f "$1/$name.new" "$1/$name"
    done
}

copy "$relay_folder" "$relay_group"
systemctl try-reload-or-restart meshpeer-relay # SIGHUP, if it runs
if [ -d "$coturn_folder" ]; then
    copy "$coturn_folder" "$coturn_group"
    if systemctl is-active --quiet coturn; then
        systemctl kill --signal=USR2 coturn
    fi
fi
