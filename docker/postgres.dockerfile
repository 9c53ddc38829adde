# PostgreSQL that brings itself to what the project needs: postgres/container.sh.
FROM postgres:17-bookworm

COPY postgres /srv/postgres
# A new volume takes over the folder's owner, and a tmpfs its mode, so that nothing runs as root, ever.
RUN chmod -R a+rX /srv/postgres \
    && install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data \
    && chmod 3777 /run/postgresql
LABEL org.opencontainers.image.title="mlops postgres" \
    org.opencontainers.image.licenses="MIT"
USER postgres
ENTRYPOINT ["bash", "/srv/postgres/container.sh"]
CMD ["postgres"]
