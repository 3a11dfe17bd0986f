# One image for both sides, `turnout sidecar ...` and `turnout control ...`; and one for every pod, without
# what the statistics compute with (`turnout sidecar` alone; a control plane does not start from it).
#   make image                     builds both with buildah, on a base of their own (see .ci/image)
#   docker build -t turnout .      builds the first on BASE, `--build-arg PART=sidecar` the second
# It runs as uid 65532, with a read-only root file system; state belongs on /var/lib/turnout,
# sockets on /run/turnout. A private package index or its certificate: --build-arg PIP_INDEX_URL,
# PIP_CERT.
ARG BASE=debian:bookworm-slim
# turnout: both sides; sidecar: the image for pods.
ARG PART=turnout

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_CERT
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
      binutils gcc libc6-dev python3-dev python3-venv
WORKDIR /build
COPY requirements.txt requirements-image.txt ./
RUN python3 -m venv tools \
 && tools/bin/pip install -q --disable-pip-version-check --require-hashes --only-binary :all: \
      -r requirements-image.txt \
 && python3 -m venv --without-pip /opt/turnout \
 && tools/bin/pip --python /opt/turnout/bin/python install -q --disable-pip-version-check \
      --no-compile --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
COPY control control
COPY proto proto
COPY .ci/trim .ci/compile.py .ci/
RUN HATCH_BUILD_HOOKS_ENABLE=1 tools/bin/pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation --no-index \
      -w dist . \
 && tools/bin/pip --python /opt/turnout/bin/python install -q --disable-pip-version-check \
      --no-compile --no-deps --no-index dist/*.whl \
 && tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
      -o sbom.cdx.json /opt/turnout/bin/python \
 && .ci/trim /opt/turnout

FROM build AS build-sidecar
RUN tools/bin/pip --python /opt/turnout/bin/python uninstall -q -y --disable-pip-version-check numpy scipy \
 && tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
      -o sbom.cdx.json /opt/turnout/bin/python

FROM ${BASE} AS bare
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /usr/share/man/* /usr/share/info/* \
      /usr/share/locale/* /usr/share/i18n /usr/share/lintian /usr/lib/udev/hwdb.* \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && find /usr/share/doc -mindepth 2 -not -name copyright -not -type d -delete \
 && echo 'turnout:x:65532:65532::/var/lib/turnout:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'turnout:x:65532:' >> /etc/group \
 && install -d -o 65532 -g 65532 -m 0750 /var/lib/turnout /run/turnout

FROM bare AS root-sidecar
COPY --from=build-sidecar /opt/turnout /opt/turnout
COPY --from=build-sidecar /build/sbom.cdx.json /build/LICENSE /usr/share/doc/turnout/

FROM bare AS root-turnout
COPY --from=build /opt/turnout /opt/turnout
COPY --from=build /build/sbom.cdx.json /build/LICENSE /usr/share/doc/turnout/

FROM root-${PART} AS root

# One layer: what the base brought and we removed takes no room.
FROM scratch
COPY --from=root / /
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="turnout" \
      org.opencontainers.image.description="Split, shadow and judge ML model versions on live traffic" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/turnout/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /var/lib/turnout
VOLUME ["/var/lib/turnout", "/run/turnout"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["turnout"]
