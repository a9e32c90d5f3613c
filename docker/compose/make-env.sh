#!/bin/sh
# Generate the secrets of the compose stack into .env beside compose.yaml; keep a file that exists.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "$PWD/.env exists already"
    exit 0
fi
random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
cat > .env.part <<EOF
POSTGRES_PASSWORD=$(random 16)
S3_ACCESS_KEY_ID=$(random 10)
S3_SECRET_ACCESS_KEY=$(random 20)
FERNET_KEY=$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')
JWT_SECRET=$(random 32)
API_SECRET_KEY=$(random 16)
WEBHOOK_SECRET=whsec_$(head -c 32 /dev/urandom | base64)
EOF
mv .env.part .env
echo "$PWD/.env"
