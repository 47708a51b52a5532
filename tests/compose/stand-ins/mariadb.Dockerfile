FROM debian
RUN apt-get update -q && apt-get install -qy --no-install-recommends mariadb-server \
 && rm -rf /var/lib/mysql && install -d -o mysql -g mysql /var/lib/mysql
COPY mariadb-entrypoint /
VOLUME /var/lib/mysql
ENTRYPOINT ["/mariadb-entrypoint"]
