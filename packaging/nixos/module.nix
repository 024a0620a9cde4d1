# SPDX-License-Identifier: MIT
# A module for NixOS on WSL. With an unpacked release:
# imports = [ ./wsl-binfmt-generator-@VERSION@/packaging/nixos/module.nix ];
# Nix has not evaluated this file yet. A test parses it, and runs its build steps on Debian.
{ config, pkgs, ... }:

let
  wsl-binfmt-generator = pkgs.stdenv.mkDerivation {
    pname = "wsl-binfmt-generator";
    version = "@VERSION@";
    src = ../..;
    nativeBuildInputs = [ pkgs.python3 pkgs.scdoc ];
    # Nix writes this Python into the first lines of the scripts.
    buildInputs = [ pkgs.python3 ];
    # NixOS has these programs in other places, and has no update-binfmts.
    postPatch = ''
      substituteInPlace Makefile --replace-fail /usr/bin/python3 python3
      substituteInPlace generator/wsl-binfmt-generator units/wsl-binfmt-boot.service \
        --replace-fail /usr/lib/systemd/systemd-binfmt ${config.systemd.package}/lib/systemd/systemd-binfmt
      substituteInPlace generator/wsl-binfmt-generator \
        --replace-fail -+systemctl -+${config.systemd.package}/bin/systemctl
      substituteInPlace generator/wsl_binfmt/own.py \
        --replace-fail '"systemctl"' '"${config.systemd.package}/bin/systemctl"' \
        --replace-fail 'spawnp("timeout"' 'spawnp("${pkgs.coreutils}/bin/timeout"'
    '';
    buildFlags = [ "man" ];
    installFlags = [ "PREFIX=$(out)" "COMPILE=no" ];
    # All files in the store have the same time, so that Python cannot tell by its time whether a module has changed.
    postInstall = ''
      python3 -m compileall -q --invalidation-mode unchecked-hash $out/lib/wsl-binfmt-generator
    '';
  };
in
{
  systemd.generators.wsl-binfmt-generator =
    "${wsl-binfmt-generator}/lib/systemd/system-generators/wsl-binfmt-generator";
  systemd.packages = [ wsl-binfmt-generator ];
  environment.systemPackages = [ wsl-binfmt-generator ];
}
